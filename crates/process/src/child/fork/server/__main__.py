"""The program of a fork parent. `child/fork.rs` writes this folder next to the working folder."""

from mcpo_fork.parent import Parent

Parent().run()

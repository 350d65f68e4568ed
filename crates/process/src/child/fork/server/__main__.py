"""What a fork parent runs: this folder, written beside its own by `program.rs`."""

from mcpo_fork.parent import Parent

Parent().live()

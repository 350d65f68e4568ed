"""The reader behind docs/texts.md finds each text once, and nothing of tests and comments."""

import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


def script(name: str):
    """A script without a suffix, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "scripts" / name))
    # Scripts are not compiled into the source tree.
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


texts = script("texts")


def page(rust: str) -> str:
    return texts.page_of_sources([texts.Source.parse("crates/a/src/b.rs", rust)])


class Page(unittest.TestCase):
    def assert_lines(self, rust: str, *lines: str) -> None:
        """The page has these lines of texts, and no others."""
        found = [line for block in page(rust).split("```text\n")[1:] for line in block.split("\n```")[0].split("\n")]
        self.assertEqual(found, list(lines))

    def test_a_log_message_has_its_level_and_its_fields(self):
        self.assert_lines(
            r"""fn f() {
                tracing::warn!(job = ?job.id(), %error, why, pair = (1, 2), "cannot read \
                    the {}", name.of(a, b));
                tracing::error!(target: CRITICAL, "the \"disk\" is full");
            }""",
            'critical: the "disk" is full',
            "warn: cannot read the {name.of(a, b)} [job, error, why, pair]",
        )

    def test_a_constant_in_a_message_is_shown(self):
        self.assert_lines(
            'const WHY: &str = "no key is set";\nfn f() { tracing::info!("{WHY}"); }',
            "info: no key is set",
            "WHY: no key is set",
        )

    def test_an_error_is_named_by_its_type_and_variant(self):
        self.assert_lines(
            """#[error("not a key")]
            pub struct BadKey;
            pub enum E {
                #[error("{0} of {n}", n = count(.0))]
                #[allow(dead_code)]
                Many(u8),
                #[error(transparent)]
                Cause(io::Error),
            }""",
            "BadKey: not a key",
            "E::Many: {0} of {n}",
        )

    def test_other_texts_are_named_by_the_code_that_makes_them(self):
        self.assert_lines(
            r"""impl<T: A> From<Vec<T>> for Problem {
                fn not_ready(name: &'static str) -> impl Fn() -> u8 {
                    let text = format!("the server '{name}' is starting\nwait");
                    Self::message("starting", '"', b"no text", text)
                }
            }
            static RAW: &str = r#"say "hello" twice"#;""",
            r"Problem::not_ready: the server '{name}' is starting\nwait",
            'RAW: say "hello" twice',
        )

    def test_what_no_run_shows_is_left_out(self):
        self.assert_lines(
            """// "a comment of words"
            #[allow(dead_code, reason = "used by a macro")]
            fn f() { g().expect("it was checked before"); unreachable!("never gets here"); key("one"); }
            #[cfg(test)]
            mod tests { fn t() { tracing::warn!("in a test only"); let s = "a text of tests"; } }"""
        )

    def test_a_metric_has_its_help(self):
        self.assert_lines(
            'fn new() { Self { calls: counted(r, "calls", "Calls that ended") } }', "mcpo_calls: Calls that ended"
        )

    def test_moved_code_does_not_change_the_page(self):
        one, two = 'fn a() { log("one text"); }\n', '\nfn b() { tracing::info!("another text"); }\n'
        self.assertEqual(page(one + two), page(two + "// more\n" + one))

    def test_the_help_of_each_command_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            program.write_text(
                "#!/bin/sh\n"
                'case "$*" in\n'
                "--help) printf 'Top\\n\\nCommands:\\n  one  First,\\n       in two lines\\n"
                "  two  Second\\n  help  Print\\n\\nOptions:\\n  -h\\n' ;;\n"
                "'one --help') echo One ;;\n"
                "'two --help') printf 'Two\\n\\nCommands:\\n  three  Third\\n' ;;\n"
                "'two three --help') echo \"Three $SET\" ;;\n"
                "*) exit 1 ;;\n"
                "esac\n"
            )
            program.chmod(0o755)
            os.environ["SET"] = "of the caller"
            self.addCleanup(os.environ.pop, "SET")
            found = dict(texts.helps(program))
        self.assertEqual(
            list(found), ["mcpo-bridge", "mcpo-bridge one", "mcpo-bridge two", "mcpo-bridge two three"]
        )
        self.assertEqual(found["mcpo-bridge two three"], "Three")


if __name__ == "__main__":
    unittest.main()

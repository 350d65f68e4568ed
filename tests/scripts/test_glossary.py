"""The lint of names finds what our code declares, and nothing that others declare."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_texts import script  # noqa: E402

glossary = script("glossary")


def reported(rust: str) -> set[str]:
    found = glossary.declared("crates/a/src/b.rs", rust)
    return {f"{one.kind} {one.name}" for one in found if one.remedy()}


class Glossary(unittest.TestCase):
    def test_each_kind_of_declaration_is_read(self):
        rust = """
            pub struct State<T> where T: Fn(u8) -> u8 { pub(super) place: Option<Box<T>>, #[serde(skip)] free: u8 }
            enum Next { Parked, Done { door: u8 }, Beside(u8), Other = 3 }
            struct Asked(Mutex<u8>);
            pub(crate) async fn try_place<T>(at: T) {}
            impl Name { fn of(text: &str) -> Self {} }
            mod door;
            const STANDING: u64 = 0;
            type Guest = u8;
            fn flags(r: &mut Reader) { r.setting("--max-places COUNT", count); }
        """
        self.assertEqual(
            reported(rust),
            {
                "struct State",
                "field place",
                "variant Parked",
                "field door",
                "variant Beside",
                "struct Asked",
                "fn try_place",
                "fn of",
                "mod door",
                "const STANDING",
                "type Guest",
                "flag max-places",
            },
        )

    def test_what_is_named_elsewhere_is_no_declaration(self):
        rust = """
            use axum::extract::State;
            // fn of a comment, struct Door
            fn placeholder(State(app): State<App>, place: u8) -> &'static str { let door = "struct Guest"; door }
            fn replace_in_place() {}
            struct Replaced { of: u8 }
            #[cfg(test)]
            mod tests { struct Parts { place: u8 } fn of() {} }
        """
        self.assertEqual(reported(rust), set())


if __name__ == "__main__":
    unittest.main()

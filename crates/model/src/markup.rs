//! Names of files, servers and tools in text that is shown as markdown or HTML: a name must not add
//! markup.

/// For use in a sentence: the result starts no HTML tag or entity.
pub fn plain_text(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        push_plain(&mut plain, letter);
    }
    plain
}

/// For the text of a markdown link: the result neither ends the link nor starts an image or code.
pub fn link_text(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            '\\' | '[' | ']' | '`' | '!' => text.extend(['\\', letter]),
            // A line break would end the paragraph and the link.
            control if control.is_control() => text.push(' '),
            other => push_plain(&mut text, other),
        }
    }
    text
}

fn push_plain(text: &mut String, letter: char) {
    match letter {
        '&' => text.push_str("&amp;"),
        '<' => text.push_str("&lt;"),
        '>' => text.push_str("&gt;"),
        other => text.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_start_no_markup() {
        assert_eq!(
            link_text("<img src=x onerror=alert(1)>.txt"),
            "&lt;img src=x onerror=alert(1)&gt;.txt"
        );
        assert_eq!(link_text("a](http://x) [b\\"), "a\\](http://x) \\[b\\\\");
        assert_eq!(link_text("![a](b)`c`\n\nd"), "\\!\\[a\\](b)\\`c\\`  d");
        assert_eq!(
            link_text("sales_2026 *final*.xlsx"),
            "sales_2026 *final*.xlsx"
        );
        assert_eq!(plain_text("a & <b>"), "a &amp; &lt;b&gt;");
    }
}

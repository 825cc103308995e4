//! Matches text against patterns in which `*` stands for any run of characters, the empty one included.

/// A pattern cut at its stars. Matching is linear in the text for one star, and never exponential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Box<str>>,
}

impl Glob {
    /// Compiles a pattern; every text is one.
    pub fn new(pattern: &str) -> Self {
        Self {
            parts: pattern.split('*').map(Into::into).collect(),
        }
    }

    /// Does the whole text match?
    pub fn matches(&self, text: &str) -> bool {
        let (first, rest) = self.parts.split_first().map_or(("", &[][..]), |(f, r)| (f, r));
        let Some((last, middle)) = rest.split_last() else {
            return first == text;
        };
        let Some(mut text) = text.strip_prefix(first) else {
            return false;
        };
        for part in middle {
            match text.find(&**part) {
                Some(at) => text = &text[at + part.len()..],
                None => return false,
            }
        }
        text.ends_with(&**last)
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn stars_match_runs() {
        for (pattern, text, expect) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("*", "x/y", true),
            ("spiffe://m/unit/*", "spiffe://m/unit/a/b", true),
            ("spiffe://m/unit/legacy-*", "spiffe://m/unit/legacy", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expect, "{pattern} on {text}");
        }
    }
}

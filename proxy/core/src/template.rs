//! Path templates: `/products/{id}` and `/static/*`, matched against a path in normal form and filled from another's match.
//!
//! Law: what a variable stands for is one segment and not empty, `*` at the end is any rest, none too. Both begin behind a
//! slash where they are filled in, so that no filled path has a segment that neither side wrote.

use crate::path;

/// A path with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// Ends in `*`.
    is_open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Variable(Box<str>),
}

/// What a path's variables stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured<'p> {
    values: Vec<&'p str>,
    rest: &'p str,
}

impl Template {
    /// Reads a template; `None`: it is none. It begins with a slash (or is `*`), its plain parts are in normal form, a
    /// variable is a whole segment, and none stands twice.
    pub fn parse(text: &str) -> Option<Self> {
        let (plain, is_open) = match text.strip_suffix('*') {
            Some(plain) => (plain, true),
            None => (text, false),
        };
        if plain.contains('*') || (plain.is_empty() && !is_open) {
            return None;
        }
        let mut parts = Vec::new();
        let mut rest = plain;
        while let Some((before, behind)) = rest.split_once("/{") {
            let (name, after) = behind.split_once('}')?;
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            let is_segment = after.starts_with('/') || (after.is_empty() && !is_open);
            if !is_name || !is_segment || parts.contains(&Part::Variable(name.into())) {
                return None;
            }
            parts.push(Part::Text(format!("{before}/").into()));
            parts.push(Part::Variable(name.into()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        let template = Self { parts, is_open };
        template.is_normal().then_some(template)
    }

    fn is_normal(&self) -> bool {
        let part = |part: &Part| match part {
            Part::Text(text) => (**text).to_owned(),
            Part::Variable(_) => "x".to_owned(),
        };
        if self
            .parts
            .iter()
            .any(|part| matches!(part, Part::Text(text) if text.contains(['{', '}'])))
        {
            return false;
        }
        let sample: String = self.parts.iter().map(part).collect();
        (sample.is_empty() && self.is_open) || path::normal(&sample).is_ok_and(|normal| normal == sample)
    }

    /// What the variables stand for in this path, which is in normal form; `None`: it does not fit.
    pub fn matches<'p>(&self, path: &'p str) -> Option<Captured<'p>> {
        let mut captured = Captured::default();
        let mut rest = path;
        for part in &self.parts {
            match part {
                Part::Text(text) => rest = rest.strip_prefix(&**text)?,
                Part::Variable(_) => {
                    let (value, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                    if value.is_empty() {
                        return None;
                    }
                    captured.values.push(value);
                    rest = after;
                }
            }
        }
        captured.rest = rest;
        (self.is_open || rest.is_empty()).then_some(captured)
    }

    /// May it be filled with what paths that fit `other` are made of? Without one there is nothing to be filled in.
    pub fn fills_from(&self, other: Option<&Self>) -> bool {
        let has = |part: &Part| match part {
            Part::Text(_) => true,
            Part::Variable(_) => other.is_some_and(|other| other.parts.contains(part)),
        };
        let rest = !self.is_open || (self.is_behind_slash() && other.is_some_and(|o| o.is_open && o.is_behind_slash()));
        rest && self.parts.iter().all(has)
    }

    /// Does the rest begin a segment?
    fn is_behind_slash(&self) -> bool {
        matches!(self.parts.last(), Some(Part::Text(text)) if text.ends_with('/'))
    }

    /// The path that `captured`, a match of `other`, makes of it.
    pub fn fill(&self, other: Option<&Self>, captured: &Captured<'_>) -> String {
        let names = other.into_iter().flat_map(|other| &other.parts);
        let names: Vec<_> = names.filter(|part| matches!(part, Part::Variable(_))).collect();
        let mut path = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Variable(_) => {
                    let at = names.iter().position(|name| *name == part);
                    path.push_str(at.and_then(|at| captured.values.get(at)).unwrap_or(&""));
                }
            }
        }
        if self.is_open {
            path.push_str(captured.rest);
        }
        path
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

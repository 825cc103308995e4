//! Turns a request path into the one form in which path rules are matched (RFC 3986, section 6.2.2).
//!
//! Law: two paths that an application could take for the same have the same normal form, or at least one of them is
//! ambiguous. Percent-encoded unreserved characters are decoded, hexadecimal digits written in upper case; nothing is
//! removed or merged. What servers read in different ways is `Ambiguous`: encoded slash or backslash, dot segments
//! (with path parameters too, `..;x`), empty segments (`//`: some servers merge them, some don't), control bytes and
//! NUL, bytes that no URI may have, broken or doubled percent-encoding.
//! Twin of `hostmesh/policy/paths.py`; both are held to `tests/vectors/paths.json`.

use std::borrow::Cow;

use thiserror::Error;

/// Why a path has no single meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Ambiguous {
    /// Not empty and not beginning with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `%2F`, `%5C` or a bare backslash.
    #[error("an encoded slash or a backslash in the path")]
    Slash,
    /// `.` or `..`, in any spelling.
    #[error("a dot segment in the path")]
    DotSegment,
    /// `//`.
    #[error("an empty segment in the path")]
    EmptySegment,
    /// Below 0x20 or 0x7f, as a byte or percent-encoded.
    #[error("a control character in the path")]
    Control,
    /// A byte that must be percent-encoded in a path, e.g. a space, `#` or `"`, or one above 0x7f.
    #[error("a byte that may not stand in a path")]
    Byte,
    /// `%` without two hexadecimal digits.
    #[error("a broken percent-encoding")]
    Encoding,
    /// `%25` followed by two hexadecimal digits: who decodes twice sees something else.
    #[error("a doubled percent-encoding")]
    Doubled,
}

/// The path of a request target (RFC 9112, section 3.2): without the query; of the absolute form, what follows the
/// authority. `*` and an authority form give back themselves.
pub fn of_target(target: &str) -> &str {
    let without_query = target.split_once('?').map_or(target, |(path, _)| path);
    if target.starts_with('/') {
        return without_query;
    }
    let Some((_, rest)) = without_query.split_once("://") else {
        return without_query;
    };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}

/// The normal form of a path without its query. Borrowed where the path is normal as it came.
pub fn normal(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous::NotAbsolute);
    }
    let mut changed: Option<String> = None;
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'%' {
            let decoded = percent(bytes, at)?;
            let (high, low) = (bytes[at + 1], bytes[at + 2]);
            if is_unreserved(decoded) {
                changed
                    .get_or_insert_with(|| path[..at].to_owned())
                    .push(char::from(decoded));
            } else if high.is_ascii_lowercase() || low.is_ascii_lowercase() {
                let out = changed.get_or_insert_with(|| path[..at].to_owned());
                out.push('%');
                out.push(char::from(high.to_ascii_uppercase()));
                out.push(char::from(low.to_ascii_uppercase()));
            } else if let Some(out) = &mut changed {
                out.push_str(&path[at..at + 3]);
            }
            at += 3;
            continue;
        }
        plain(byte)?;
        if let Some(out) = &mut changed {
            out.push(char::from(byte));
        }
        at += 1;
    }
    let normal = changed.map_or(Cow::Borrowed(path), Cow::Owned);
    doubled(&normal)?;
    segments(&normal)?;
    Ok(normal)
}

/// What the encoding at `at` stands for, if a path may hold it.
fn percent(bytes: &[u8], at: usize) -> Result<u8, Ambiguous> {
    let digit = |index: usize| bytes.get(index).and_then(|byte| char::from(*byte).to_digit(16));
    let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
        return Err(Ambiguous::Encoding);
    };
    match u8::try_from(high * 16 + low).map_err(|_| Ambiguous::Encoding)? {
        b'/' | b'\\' => Err(Ambiguous::Slash),
        0..=0x1f | 0x7f => Err(Ambiguous::Control),
        byte => Ok(byte),
    }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986, section 3.3 (`pchar` and `/`), and the few that browsers send unencoded: `|`, `[`, `]`, `^`, `{`, `}`.
fn plain(byte: u8) -> Result<(), Ambiguous> {
    match byte {
        b'\\' => Err(Ambiguous::Slash),
        0..=0x1f | 0x7f => Err(Ambiguous::Control),
        b' ' | b'"' | b'#' | b'<' | b'>' | b'`' | b'?' | 0x80.. => Err(Ambiguous::Byte),
        _ => Ok(()),
    }
}

/// In the normal form: the digits behind `%25` may have been encoded themselves.
fn doubled(path: &str) -> Result<(), Ambiguous> {
    let is_doubled = |part: &[u8]| part.starts_with(b"%25") && part[3..].iter().all(u8::is_ascii_hexdigit);
    match path.as_bytes().windows(5).any(is_doubled) {
        true => Err(Ambiguous::Doubled),
        false => Ok(()),
    }
}

fn segments(path: &str) -> Result<(), Ambiguous> {
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        // `..;x`: servlet containers take what follows the semicolon for a parameter.
        match segment.split(';').next().unwrap_or_default() {
            "." | ".." => return Err(Ambiguous::DotSegment),
            "" if segments.peek().is_some() || !segment.is_empty() => return Err(Ambiguous::EmptySegment),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;

//! Paths as the archive spells them become lists of plain components, or are refused. Nothing is looked up on a host.

use crate::image::layer::Budget;

use super::Refusal;

/// Longest component in bytes (`NAME_MAX`).
pub(crate) const NAME_MAX: usize = 255;

/// A normalised path below the archive's root: components joined by `/`, without `.`, `..`, empty ones or a leading `/`. Empty for the
/// root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TarPath(Vec<u8>);

impl TarPath {
    /// Normalises a path. A leading `/` and `.` components mean nothing, as in Docker and GNU tar; `..` is refused wherever it stands.
    pub(crate) fn parse(raw: &[u8], budget: &Budget) -> Result<Self, Refusal> {
        if raw.len() as u64 > budget.path_bytes {
            return Err(Refusal::Exceeds("path_bytes", budget.path_bytes));
        }
        if raw.contains(&0) {
            return Err(Refusal::Nul);
        }
        let mut path = Vec::with_capacity(raw.len());
        let mut depth = 0_u64;
        for component in raw.split(|b| *b == b'/').filter(|c| !matches!(*c, b"" | b".")) {
            if component == b".." {
                return Err(Refusal::DotDot);
            }
            if component.len() > NAME_MAX {
                return Err(Refusal::Exceeds("NAME_MAX of a path component", NAME_MAX as u64));
            }
            depth = depth.saturating_add(1);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        if depth > budget.path_depth {
            return Err(Refusal::Exceeds("path_depth", budget.path_depth));
        }
        Ok(Self(path))
    }

    /// Whether this is the root of the archive.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, components joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// The directory and the last component. `None` for the root.
    pub fn split_last(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => (self.0.get(..at).unwrap_or_default(), self.0.get(at.saturating_add(1)..).unwrap_or_default()),
            None => (b"", &self.0),
        })
    }

    /// For messages: bytes outside printable ASCII are escaped.
    pub fn display(&self) -> String {
        shown(&self.0)
    }
}

/// A character that stays where it is when it is shown: no control character, and none that turns or hides text around it.
pub(crate) fn is_plain(c: char) -> bool {
    const HIDDEN: [std::ops::RangeInclusive<char>; 5] = [
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
        '\u{feff}'..='\u{feff}',
        '\u{e0000}'..='\u{e007f}',
    ];
    !c.is_control() && !HIDDEN.iter().any(|range| range.contains(&c))
}

/// A name for messages: escaped where it is not printable, and cut when it is long.
pub(crate) fn shown(raw: &[u8]) -> String {
    const MOST: usize = 200;
    let head = raw.get(..MOST).unwrap_or(raw);
    let text: String = match std::str::from_utf8(head) {
        Ok(text) => {
            text.chars().flat_map(|c| if is_plain(c) { vec![c] } else { c.escape_default().collect() }).collect()
        }
        Err(_) => head.escape_ascii().to_string(),
    };
    if raw.len() > MOST { format!("{text}...") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain_or_refused() {
        let budget = Budget::default();
        for (raw, plain) in
            [("a/b", "a/b"), ("/a//b/", "a/b"), ("./a/./b", "a/b"), ("./", ""), ("/", ""), ("...", "...")]
        {
            assert_eq!(TarPath::parse(raw.as_bytes(), &budget).unwrap().as_bytes(), plain.as_bytes(), "{raw}");
        }
        for raw in ["..", "../a", "a/..", "/../a", "a/../b", "./..", "a\0b"] {
            assert!(TarPath::parse(raw.as_bytes(), &budget).is_err(), "{raw:?}");
        }
        let long = "x".repeat(256);
        assert!(matches!(TarPath::parse(long.as_bytes(), &budget), Err(Refusal::Exceeds(_, 255))));
        let deep = "d/".repeat(257);
        assert!(matches!(TarPath::parse(deep.as_bytes(), &budget), Err(Refusal::Exceeds("path_depth", 256))));
    }

    #[test]
    fn the_last_component_splits_off() {
        let path = |raw: &str| TarPath::parse(raw.as_bytes(), &Budget::default()).unwrap();
        assert_eq!(path("a/b/c").split_last(), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(path("c").split_last(), Some((&b""[..], &b"c"[..])));
        assert_eq!(path("/").split_last(), None);
    }
}

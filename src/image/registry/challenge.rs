//! `WWW-Authenticate` (RFC 9110, section 11.6.1), as far as registries use it: which server gives tokens, and for what.

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// Name and password, or something unknown.
    Other,
}

impl Challenge {
    /// Reads one header. Parameters come as `name="value"` or `name=value`, separated by commas.
    pub(super) fn parse(header: &str) -> Self {
        let Some((scheme, mut rest)) = header.trim().split_once(' ') else { return Self::Other };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Self::Other;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        while let Some((name, value)) = parameter(&mut rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        realm.map_or(Self::Other, |realm| Self::Bearer { realm, service, scope })
    }
}

/// Takes the next parameter off the front of `rest`.
fn parameter<'a>(rest: &mut &'a str) -> Option<(&'a str, String)> {
    let (name, behind) = rest.trim_start_matches([' ', ',', '\t']).split_once('=')?;
    let mut value = String::new();
    let Some(quoted) = behind.trim_start().strip_prefix('"') else {
        let (plain, behind) = behind.split_once(',').unwrap_or((behind, ""));
        *rest = behind;
        return Some((name.trim(), plain.trim().to_owned()));
    };
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => {
                *rest = quoted.get(at.saturating_add(1)..).unwrap_or_default();
                return Some((name.trim(), value));
            }
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            _ => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_of_known_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#;
        let Challenge::Bearer { realm, service, scope } = Challenge::parse(hub) else { panic!("bearer") };
        assert_eq!(realm, "https://auth.docker.io/token");
        assert_eq!(service.as_deref(), Some("registry.docker.io"));
        assert_eq!(scope.as_deref(), Some("repository:library/debian:pull"));
        let odd = r#"bearer service=a\b , error="x\",y", REALM="http://r/""#;
        let expected =
            Challenge::Bearer { realm: "http://r/".to_owned(), service: Some("a\\b".to_owned()), scope: None };
        assert_eq!(Challenge::parse(odd), expected);
        for other in ["", "Basic realm=\"x\"", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"x"] {
            assert_eq!(Challenge::parse(other), Challenge::Other, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_hang(text in "(Bearer )?[ -~ü]{0,60}") {
            let _ = Challenge::parse(&text);
        }
    }
}

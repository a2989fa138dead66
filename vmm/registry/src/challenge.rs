//! `WWW-Authenticate`: how a registry wants to be asked (RFC 9110, 11.6.1).

/// One way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token of another server.
    Bearer {
        /// The URL that gives tokens.
        realm: String,
        /// What to tell it.
        service: Option<String>,
        /// What the token shall allow.
        scope: Option<String>,
    },
}

/// Longest header that is looked at.
const MOST: usize = 8 << 10;

/// The ways in that `header` offers and that are known, in its order.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.get(..header.len().min(MOST)).unwrap_or_default();
    let mut known = false;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        rest = after.trim_start_matches([' ', '\t']);
        if let Some(value) = rest.strip_prefix('=').filter(|value| !value.starts_with('=')) {
            let (value, after) = value_of(value.trim_start_matches([' ', '\t']));
            rest = after;
            if known && let Some(Challenge::Bearer { realm, service, scope }) = found.last_mut() {
                match word.to_ascii_lowercase().as_str() {
                    "realm" => *realm = value,
                    "service" => *service = Some(value),
                    "scope" => *scope = Some(value),
                    _ => {}
                }
            }
            continue;
        }
        known = true;
        match word.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => found.push(Challenge::Bearer { realm: String::new(), service: None, scope: None }),
            _ => known = false,
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted text, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |word: Option<&str>| word.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_of_registries() {
        for (header, want) in [
            ("", vec![]),
            ("Basic realm=\"Registry\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                "Bearer realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push\"",
                vec![bearer(
                    "https://auth.example/token",
                    Some("r.example"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                "BEARER realm = https://a/t , service=s, error=\"invalid_token\"",
                vec![bearer("https://a/t", Some("s"), None)],
            ),
            (
                "Negotiate realm=x, Basic realm=\"y\", Bearer realm=\"q\\\"uo\"",
                vec![Challenge::Basic, bearer("q\"uo", None, None)],
            ),
            ("Negotiate abc==", vec![]),
            ("Bearer realm=\"open", vec![bearer("open", None, None)]),
        ] {
            assert_eq!(parse(header), want, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "\\PC{0,200}") {
            parse(&header);
        }
    }
}

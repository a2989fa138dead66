//! Names in rules.

use std::fmt;
use std::str::FromStr;

/// A name, or all names below one. Internationalised names are in ASCII, as `xn--...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// In small letters, without a dot at its end.
    name: String,
    /// It is the names below it, and not the name itself.
    below: bool,
}

impl Domain {
    /// Whether the rule is about this name, which is in small letters.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        if !self.below {
            return name == self.name;
        }
        name.strip_suffix(&self.name).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl Domain {
    /// The name that it is, or that it is all names below of.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let rooted = name.strip_suffix('.');
        let name = rooted.unwrap_or(name).to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        if !crate::dns::is_name(&name) {
            return Err(format!(
                "{text:?} is not a name: letters, digits, - and _ in labels of 1 to 63, at most 253 in all; others \
                 as xn--..."
            ));
        }
        if last.bytes().all(|c| c.is_ascii_digit()) {
            return Err(format!("{text:?} is neither a name nor an address"));
        }
        if !name.contains('.') && rooted.is_none() && !below {
            return Err(format!("{text:?} is a name of one label, which is written with a dot at its end"));
        }
        Ok(Self { name, below })
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.below { "*." } else { "" };
        let dot = if self.below || self.name.contains('.') { "" } else { "." };
        write!(f, "{star}{}{dot}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_itself_and_a_star_is_all_below() {
        let label = "a".repeat(63);
        for text in [
            "example.org",
            "*.example.org",
            "xn--bcher-kva.example",
            "nas.",
            "_x.y-z.w1",
            "*.org",
            &format!("{label}.b"),
        ] {
            assert_eq!(text.parse::<Domain>().unwrap().to_string(), text);
        }
        assert_eq!("ExAmple.ORG.".parse::<Domain>().unwrap().to_string(), "example.org");
        let long = vec!["a".repeat(63); 4].join(".");
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            ".a.b",
            "a b.c",
            "bücher.example",
            "nas",
            "10.0.0",
            "1.2.3.4.5",
            "a.*.b",
            "**.a.b",
            "*a.b",
            "ex ample.org",
            &format!("{label}a.b"),
            &long,
        ] {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        let (one, all): (Domain, Domain) = ("example.org".parse().unwrap(), "*.example.org".parse().unwrap());
        for (name, is_one, is_below) in [
            ("example.org", true, false),
            ("www.example.org", false, true),
            ("a.b.example.org", false, true),
            ("notexample.org", false, false),
            (".example.org", false, false),
            ("example.org.evil", false, false),
            ("example.or", false, false),
            ("", false, false),
        ] {
            assert_eq!((one.is_about(name), all.is_about(name)), (is_one, is_below), "{name}");
        }
    }
}

//! Which events a user wants to see.

use std::str::FromStr;

use super::{Event, What};
use crate::state::record::HealthStatus;

/// Which events are wanted: of each kind of filter that is used, one must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Vec<Filter>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Event(String),
    Name(String),
    Id(String),
    Label(String, Option<String>),
    Ancestor(String),
}

/// A text that is no filter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FilterError {
    /// It has no `=`.
    #[error("{0:?} does not have the form KEY=VALUE")]
    Form(String),
    /// Its key is unknown.
    #[error("{0:?}: the filters are event, name, id, label and ancestor")]
    Key(String),
    /// There is no such event.
    #[error("there is no event {0:?}; the events are {list}", list = What::WORDS.join(", "))]
    Event(String),
}

/// The event of a status alone.
fn health(status: HealthStatus) -> String {
    format!("health_status: {}", status.word())
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (key, value) = text.split_once('=').ok_or_else(|| FilterError::Form(text.to_owned()))?;
        let value = value.to_owned();
        Ok(match key {
            "event" if What::WORDS.contains(&value.as_str()) => Self::Event(value),
            // As docker spells it.
            "event" if HealthStatus::ALL.into_iter().any(|status| value == health(status)) => {
                Self::Event(value)
            }
            "event" => return Err(FilterError::Event(value)),
            "name" => Self::Name(value),
            "id" => Self::Id(value),
            "label" => match value.split_once('=') {
                Some((label, value)) => Self::Label(label.to_owned(), Some(value.to_owned())),
                None => Self::Label(value, None),
            },
            "ancestor" => Self::Ancestor(value),
            _ => return Err(FilterError::Key(text.to_owned())),
        })
    }
}

impl Filter {
    fn takes(&self, event: &Event) -> bool {
        match self {
            Self::Event(word) => match &event.what {
                What::Health(status) if *word == health(*status) => true,
                what => what.word() == word,
            },
            Self::Name(part) => event.name.as_str().contains(part),
            Self::Id(prefix) => event.id.to_string().starts_with(prefix),
            Self::Label(key, value) => {
                let found = event.labels.get(key);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }
            Self::Ancestor(image) => event.image == *image,
        }
    }
}

impl Filters {
    /// Reads filters, `KEY=VALUE` each.
    ///
    /// # Errors
    /// One is none.
    pub fn parse(words: &[String]) -> Result<Self, FilterError> {
        words.iter().map(|word| word.parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an event is wanted.
    #[must_use]
    pub fn take(&self, event: &Event) -> bool {
        self.0.iter().all(|filter| {
            let kind = std::mem::discriminant(filter);
            let mut alike = self.0.iter().filter(|other| std::mem::discriminant(*other) == kind);
            alike.any(|filter| filter.takes(event))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Id, Timestamp};

    #[test]
    fn of_each_kind_of_filter_one_must_fit() {
        let event = Event {
            time: Timestamp::now(),
            what: What::Paused,
            id: Id::random().unwrap(),
            name: "web-1".parse().unwrap(),
            image: "alpine:3".to_owned(),
            labels: [("stage".to_owned(), "test".to_owned())].into(),
        };
        let id = format!("id={}", event.id.short());
        for (words, taken) in [
            (&[][..], true),
            (&["event=paused"], true),
            (&["event=exited", "event=paused"], true),
            (&["event=exited"], false),
            (&["name=eb-", "event=exited", "event=paused"], true),
            (&["name=db", "event=paused"], false),
            (&[&id], true),
            (&["label=stage", "ancestor=alpine:3"], true),
            (&["label=stage=live"], false),
            (&["label=stage=live", "label=stage=test"], true),
            (&["ancestor=debian"], false),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(Filters::parse(&words).unwrap().take(&event), taken, "{words:?}");
        }
    }

    #[test]
    fn an_event_of_health_is_taken_by_its_word_or_with_its_status() {
        let what = What::Health(HealthStatus::Unhealthy);
        let event = Event {
            time: Timestamp::now(),
            what,
            id: Id::random().unwrap(),
            name: "web".parse().unwrap(),
            image: String::new(),
            labels: [].into(),
        };
        let takes = |word: &str| Filters::parse(&[format!("event={word}")]).unwrap().take(&event);
        assert!(takes("health_status") && takes("health_status: unhealthy"));
        assert!(!takes("health_status: healthy") && !takes("paused"));
        assert!(Filters::parse(&["event=health_status: ill".to_owned()]).is_err());
    }

    #[test]
    fn what_is_no_filter_says_what_there_is() {
        for (bad, hint) in [("paused", "KEY=VALUE"), ("colour=red", "ancestor"), ("event=melted", "unpaused")]
        {
            let error = Filters::parse(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(bad.rsplit('=').next().unwrap()) && error.contains(hint), "{error}");
        }
    }
}

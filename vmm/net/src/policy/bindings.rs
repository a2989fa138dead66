//! Which names were answered with an address, for as long as an answer is good.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// No more pairs of an address and a name are kept.
const MOST: usize = 4096;
/// A name is good for at least so many seconds, and at most for a day.
const SECONDS: std::ops::RangeInclusive<u32> = 60..=86_400;
/// Who asked uses an answer until its end, and then needs a moment.
const GRACE: Duration = Duration::from_secs(30);

/// A name, and until when it is good.
#[derive(Clone, Debug)]
struct Bound {
    name: Arc<str>,
    until: Duration,
}

/// Names of addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Bindings {
    by_address: HashMap<IpAddr, Vec<Bound>>,
    len: usize,
}

impl Bindings {
    /// The name was answered with the address, for some seconds.
    pub(super) fn bind(&mut self, now: Duration, address: IpAddr, name: &Arc<str>, seconds: u32) {
        let seconds = seconds.clamp(*SECONDS.start(), *SECONDS.end());
        let until = now + Duration::from_secs(seconds.into()) + GRACE;
        let known =
            self.by_address.get_mut(&address).and_then(|all| all.iter_mut().find(|one| one.name == *name));
        if let Some(bound) = known {
            bound.until = bound.until.max(until);
            return;
        }
        if self.len >= MOST {
            self.make_room(now);
        }
        self.by_address.entry(address).or_default().push(Bound { name: name.clone(), until });
        self.len += 1;
    }

    /// Forgets what is not good any more, and if that is nothing, what will be next.
    fn make_room(&mut self, now: Duration) {
        let soonest = self.by_address.values().flatten().map(|bound| bound.until).min();
        let past = soonest.map_or(now, |soonest| soonest.max(now));
        self.by_address.retain(|_, all| {
            all.retain(|bound| bound.until > past);
            !all.is_empty()
        });
        self.len = self.by_address.values().map(Vec::len).sum();
    }

    /// The names of an address that are good.
    pub(super) fn names(&self, now: Duration, address: IpAddr) -> impl Iterator<Item = &str> {
        let all = self.by_address.get(&address).into_iter().flatten();
        all.filter(move |bound| bound.until > now).map(|bound| &*bound.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bindings: &Bindings, now: u64, address: &str) -> Vec<String> {
        let names = bindings.names(Duration::from_secs(now), address.parse().unwrap());
        names.map(str::to_owned).collect()
    }

    #[test]
    fn a_name_is_good_for_its_time_and_not_for_ever() {
        let mut bindings = Bindings::default();
        let at = "192.0.2.1".parse().unwrap();
        bindings.bind(Duration::ZERO, at, &"a.b".into(), 0);
        bindings.bind(Duration::ZERO, at, &"c.d".into(), u32::MAX);
        assert_eq!(names(&bindings, 89, "192.0.2.1"), ["a.b", "c.d"]);
        assert_eq!(names(&bindings, 90, "192.0.2.1"), ["c.d"]);
        assert_eq!(names(&bindings, 86_430, "192.0.2.1"), [""; 0]);
        // Asked again, it is good for longer, and never for less.
        bindings.bind(Duration::from_secs(80), at, &"a.b".into(), 300);
        bindings.bind(Duration::from_secs(81), at, &"a.b".into(), 0);
        assert_eq!(names(&bindings, 400, "192.0.2.1"), ["a.b", "c.d"]);
        assert_eq!(names(&bindings, 1, "192.0.2.2"), [""; 0]);
    }

    #[test]
    fn so_many_are_kept_and_the_latest_are_among_them() {
        let mut bindings = Bindings::default();
        for number in 0..20_000_u32 {
            let address = std::net::Ipv4Addr::from_bits(number / 2).into();
            let name = format!("n{number}.example").into();
            bindings.bind(Duration::from_millis(number.into()), address, &name, 60);
            assert!(bindings.len <= MOST);
        }
        let held: usize = bindings.by_address.values().map(Vec::len).sum();
        assert_eq!(held, bindings.len);
        assert_eq!(names(&bindings, 20, "0.0.39.15").len(), 2);
        bindings.bind(Duration::from_secs(9999), "::1".parse().unwrap(), &"x.y".into(), 60);
        assert_eq!(bindings.len, 1, "what is past is kept");
    }
}

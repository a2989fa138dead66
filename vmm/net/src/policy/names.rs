//! Rules about names: what the resolver may be asked, and whom a stream may be for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Check, Policy, Reason};
use crate::addressee::Claim;
use crate::config::{Protocol, Rule, Target, Verdict};
use crate::dns::Answer;

/// Whether a name may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// It may, by the `allow` at this place if it is not the default.
    Allowed(Option<usize>),
    /// It may not.
    Refused(Reason),
}

impl Policy {
    /// Whether any rule is about names, so that answers have to be understood.
    #[must_use]
    pub fn is_about_names(&self) -> bool {
        self.default == Verdict::Deny
            || !self.secrets.is_empty()
            || self.allow.iter().chain(&self.deny).any(|rule| matches!(rule.target, Target::Names(_)))
    }

    /// Whether the guest may ask for a name, in small letters. A rule that denies some ports of it
    /// does not keep it from being asked for.
    #[must_use]
    pub fn name(&self, name: &str) -> Naming {
        let whole = |rule: &Rule| rule.ports.is_none() && rule.protocol.is_none() && names(rule, name);
        if let Some(place) = self.deny.iter().position(whole) {
            return Naming::Refused(Reason::Rule(place));
        }
        let allows = |rule: &Rule| rule.target == Target::Any || names(rule, name);
        match (self.allow.iter().position(allows), self.default) {
            (None, Verdict::Deny) => Naming::Refused(Reason::Default),
            (by, _) => Naming::Allowed(by),
        }
    }

    /// The guest is about to be answered so. The addresses are bound to the name that it asked for,
    /// and to those on the way that a rule denies.
    ///
    /// # Errors
    /// A name on the way is denied, and so is the answer.
    pub fn answered(&mut self, now: Duration, answer: &Answer) -> Result<(), Reason> {
        let Some((asked, way)) = answer.chain.split_first() else { return Ok(()) };
        let mut denied = Ok(());
        for name in way {
            if !self.deny.iter().any(|rule| names(rule, name)) {
                continue;
            }
            let shared: Arc<str> = name.as_str().into();
            for (address, seconds) in &answer.addresses {
                self.denied.bind(now, *address, &shared, *seconds);
            }
            if let Naming::Refused(reason @ Reason::Rule(_)) = self.name(name) {
                denied = denied.and(Err(reason));
            }
        }
        denied?;
        let asked: Arc<str> = asked.as_str().into();
        for (address, seconds) in &answer.addresses {
            self.asked.bind(now, *address, &asked, *seconds);
        }
        Ok(())
    }

    /// A name that the guest was answered this address for.
    pub fn name_of(&self, now: Duration, address: IpAddr) -> Option<&str> {
        self.asked.names(now, address).next()
    }

    /// Whether a stream to this port may go on that claims to be for somebody. `None`: that is not
    /// known yet.
    #[must_use]
    pub fn passes(&self, check: Check, claim: &Claim, port: u16) -> Option<bool> {
        let tcp = Protocol::Tcp;
        let any = |rules: &[Rule], name: &str| {
            rules.iter().any(|rule| names(rule, name) && super::is_about(rule, tcp, port))
        };
        match claim {
            Claim::More => None,
            Claim::None(_) => Some(!check.must),
            Claim::Name(name) => Some(!any(&self.deny, name) && (!check.must || any(&self.allow, name))),
        }
    }

    /// Whether the guest was answered this address for the name of a host of secrets.
    pub(super) fn may_have_secrets(&self, now: Duration, address: IpAddr, port: u16) -> bool {
        let mut secrets = self.secrets.iter();
        secrets.any(|host| self.asked.names(now, address).any(|name| host.is_about(name, port)))
    }

    /// Whether a stream that claims to be for this name is for a host of secrets: the guest was
    /// answered its address for that very name.
    #[must_use]
    pub fn has_secrets(&self, now: Duration, to: SocketAddr, name: &str) -> bool {
        self.secrets.iter().any(|host| host.is_about(name, to.port()))
            && self.asked.names(now, to.ip()).any(|asked| asked == name)
    }

    /// Whether a rule denies names at this port of TCP.
    pub(super) fn denies_names(&self, port: u16) -> bool {
        let denies = |rule: &Rule| {
            matches!(rule.target, Target::Names(_)) && super::is_about(rule, Protocol::Tcp, port)
        };
        self.deny.iter().any(denies)
    }
}

/// Whether a rule is about a name.
fn names(rule: &Rule, name: &str) -> bool {
    matches!(&rule.target, Target::Names(domain) if domain.is_about(name))
}

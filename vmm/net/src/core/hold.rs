//! Streams whose first bytes are held back until they have said whom they are for.

use super::Net;
use super::out::Action;
use super::table::{FlowId, Held, Kind, Time};
use crate::addressee::Claim;
use crate::number::len32;
use crate::policy::Reason;

impl Net {
    /// Whether the peer of a stream says something before the guest has said whom it is for, where
    /// only that lets the stream out: whoever it is is not heard, and the stream is no more.
    pub(super) fn speaks_too_early(&mut self, now: Time, id: FlowId) -> bool {
        let Some(flow) = self.table.get(id) else { return false };
        if !flow.held.as_ref().is_some_and(|held| held.check.must) {
            return false;
        }
        let key = flow.key;
        self.refused_because(
            now,
            &key,
            Reason::Addressee,
            "its server speaks before it is known whom it is for",
        );
        self.end(id, true, true);
        true
    }

    /// Bytes of a stream that is held back, and perhaps its end. `false`: the stream is no more.
    pub(super) fn hold(&mut self, now: Time, id: FlowId, bytes: &[u8], fin: bool) -> bool {
        let Some(flow) = self.table.get(id) else { return false };
        let (Some(held), Kind::Tcp(tcp)) = (&mut flow.held, &mut flow.kind) else { return true };
        held.bytes.extend(bytes);
        // They count as what the peer has yet to take, so that the guest's window has them.
        tcp.unwritten += len32(bytes.len());
        self.unwritten += u64::from(len32(bytes.len()));
        let Held { check, bytes } = &**held;
        let mut claim = check.speaks.claim(bytes);
        if fin && claim == Claim::More {
            claim = Claim::None("it ended before it said whom it is for");
        }
        let (key, check) = (flow.key, *check);
        match self.policy.passes(check, &claim, key.remote.port()) {
            None => true,
            Some(true) => {
                if let Some(held) = flow.held.take() {
                    if let Claim::Name(name) = claim
                        && self.policy.has_secrets(now, key.remote, &name)
                    {
                        let (to, from) = (flow.to, key.guest);
                        self.actions.push_back(Action::HandOver { flow: id, name, from, to });
                    }
                    self.actions.push_back(Action::WriteHeld { flow: id, bytes: held.bytes });
                }
                true
            }
            Some(false) => {
                let why = match claim {
                    Claim::Name(name) => format!("for {name}, which is not allowed there"),
                    Claim::None(why) => why.to_owned(),
                    Claim::More => String::new(),
                };
                self.refused_because(now, &key, Reason::Addressee, &why);
                self.end(id, true, true);
                false
            }
        }
    }
}

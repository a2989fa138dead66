//! System registers that neither the hardware nor the framework serves: they read as zero, and
//! what is written is ignored. Counted, and told with the next fault.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::syndrome::{SystemAccess, SystemName};

/// The registers that a machine's guest was answered for.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    count: AtomicU64,
    first: Mutex<Option<SystemName>>,
}

impl Ignored {
    /// Serves an access: what it leaves in which of X0 to X30, if in any.
    pub(super) fn serve(&self, access: SystemAccess) -> Option<(u8, u64)> {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(access.name);
        }
        (access.read && access.register < 31).then_some((access.register, 0))
    }
}

/// What is added to the sentence of a fault: nothing if there were none.
impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = *self.first.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.count.load(Ordering::Relaxed), first) {
            (1, Some(name)) => write!(f, "; before, one access to the unknown register {name} was ignored"),
            (count, Some(name)) => {
                write!(f, "; before, {count} accesses to unknown registers were ignored, {name} the first")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_the_controller_are_known() {
        let name = |crn, crm, op2| SystemName { op0: 3, op1: 0, crn, crm, op2 };
        // ICC_IAR1_EL1, ICC_SGI1R_EL1, ICC_PMR_EL1; VBAR_EL1, ISR_EL1, SCTLR_EL1
        assert!([name(12, 12, 0), name(12, 11, 5), name(4, 6, 0)].iter().all(|it| it.is_of_the_controller()));
        assert!(![name(12, 0, 0), name(12, 1, 0), name(1, 0, 0)].iter().any(|it| it.is_of_the_controller()));
    }

    #[test]
    fn reads_give_zero_and_all_are_counted() {
        let name = |crm| SystemName { op0: 2, op1: 0, crn: 0, crm, op2: 0 };
        let access = |crm, read, register| SystemAccess { name: name(crm), read, register };
        let ignored = Ignored::default();
        assert_eq!(ignored.to_string(), "");
        // MDCCINT_EL1, which newer hosts trap.
        assert_eq!(ignored.serve(access(2, false, 3)), None);
        assert_eq!(
            ignored.to_string(),
            "; before, one access to the unknown register S2_0_C0_C2_0 was ignored"
        );
        assert_eq!(ignored.serve(access(3, true, 30)), Some((30, 0)));
        // The zero register is no register.
        assert_eq!(ignored.serve(access(3, true, 31)), None);
        assert!(ignored.to_string().contains("3 accesses") && ignored.to_string().contains("S2_0_C0_C2_0"));
    }
}

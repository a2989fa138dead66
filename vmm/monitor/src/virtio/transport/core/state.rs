//! The transport's state: what the driver said, and where its queues stand.

use super::{DRIVEN, FOUND, Life, NEGOTIATED, READY, Registers, Transport};
use crate::state::fields::{Field, FieldReader, FieldWriter};
use crate::state::{Sections, StateError, Stateful};
use crate::virtio::queue::{Position, Queue, QueueConfig};
use crate::virtio::spec::{id, status};

const VERSION: u32 = 1;

/// Who has the queues, of those that nobody is on his way with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rest {
    /// No driver yet.
    Idle,
    /// The transport: where each one stands.
    Paused(Vec<Option<Position>>),
    /// Nobody: the device could not start.
    Broken,
}

impl Field for Rest {
    fn write(&self, fields: &mut FieldWriter) {
        match self {
            Self::Idle => fields.put(&0u8),
            Self::Paused(positions) => {
                fields.put(&1u8);
                fields.put_list(positions.iter());
            }
            Self::Broken => fields.put(&2u8),
        }
    }

    fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError> {
        Ok(match fields.get::<u8>()? {
            0 => Self::Idle,
            1 => Self::Paused(fields.get_list(usize::from(u8::MAX))?),
            2 => Self::Broken,
            other => return Err(fields.unfit(format!("there is no life {other}"))),
        })
    }
}

/// The slot's own section, and below it that of its device.
impl Stateful for Transport {
    /// # Panics
    /// A worker is out: the machine asks for state after [`Transport::paused`] has said yes.
    fn save(&self, name: &str, state: &mut Sections) {
        // Where the slot is, what it is made of and what its device is are the machine's plan.
        let Self { slot: _, memory: _, interrupt, host: _, device, doorbells: _, registers, life } = self;
        let Registers {
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            queues,
        } = registers;
        let rest = match life {
            Life::Idle => Rest::Idle,
            Life::Paused(queues) => {
                Rest::Paused(queues.iter().map(|queue| queue.as_ref().map(Queue::position)).collect())
            }
            Life::Broken => Rest::Broken,
            Life::Running(_) | Life::Resetting(_) | Life::Pausing(_) | Life::Detaching(_) => {
                panic!("a device is asked for its state while its worker is out")
            }
        };
        state.put_fields(name, VERSION, |fields| {
            fields.put(&self.device_id());
            fields.put(status);
            fields.put(device_features_select);
            fields.put(driver_features_select);
            fields.put(driver_features);
            fields.put(queue_select);
            fields.put_list(queues.iter());
            interrupt.save(fields);
            fields.put(&rest);
            for index in 0..queues.len() {
                let chains = interrupt.tally().queue(index).map_or(Some(0), |tally| tally.chains());
                fields.put(&chains.unwrap_or(UNCOUNTED));
            }
        });
        if let Some(device) = device {
            device.save(&below(name), state);
        }
    }

    /// The slot has its device and no driver. Then it is as it was during the pause, and
    /// [`Transport::resume`] starts the worker.
    ///
    /// # Panics
    /// It has a driver.
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        assert!(matches!(self.life, Life::Idle), "a slot takes state before it has a driver");
        state.take_fields(name, VERSION, |fields| self.restore_fields(fields))?;
        match &mut self.device {
            Some(device) => device.restore(&below(name), state),
            None => Ok(()),
        }
    }
}

/// In place of a number of chains that nobody has counted.
const UNCOUNTED: u64 = u64::MAX;

/// The name of the device's section.
fn below(name: &str) -> String {
    format!("{name}.device")
}

impl Transport {
    fn restore_fields(&mut self, fields: &mut FieldReader<'_>) -> Result<(), StateError> {
        let (saved, here) = (fields.get()?, self.device_id());
        if saved != here {
            let (saved, here) = (id::name(saved), id::name(here));
            return Err(fields.unfit(format!("its device is {saved}, and the slot's is {here}")));
        }
        let registers = self.restore_registers(fields)?;
        self.registers = registers;
        self.interrupt.tally().set_status(self.registers.status);
        self.interrupt.restore(fields)?;
        let rest = fields.get()?;
        self.life = self.restore_life(&rest).map_err(|why| fields.unfit(why))?;
        for index in 0..self.registers.queues.len() {
            let chains: u64 = fields.get()?;
            if let Some(tally) = self.interrupt.tally().queue(index) {
                tally.set_chains((chains != UNCOUNTED).then_some(chains));
            }
        }
        Ok(())
    }

    /// Registers that a driver can have left so.
    fn restore_registers(&self, fields: &mut FieldReader<'_>) -> Result<Registers, StateError> {
        let registers = Registers {
            status: fields.get()?,
            device_features_select: fields.get()?,
            driver_features_select: fields.get()?,
            driver_features: fields.get()?,
            queue_select: fields.get()?,
            queues: fields.get_list(self.registers.queues.len())?,
        };
        // FAILED may join any state.
        let step = registers.status & !status::FAILED;
        let is_known = [0, FOUND, DRIVEN, NEGOTIATED, READY].contains(&step);
        if !is_known || self.device.is_none() && step != 0 {
            return Err(fields.unfit(format!("no driver brings a device to status {:#x}", registers.status)));
        }
        let features = registers.driver_features;
        if step < DRIVEN && features != 0 || step >= NEGOTIATED && !self.accepts(features) {
            let why =
                format!("its driver has accepted the features {features:#x}, which it cannot have here");
            return Err(fields.unfit(why));
        }
        let untouched = &self.registers.queues;
        let is_same = |(saved, here): (&QueueConfig, &QueueConfig)| saved.max_size == here.max_size;
        if registers.queues.len() != untouched.len() || !registers.queues.iter().zip(untouched).all(is_same) {
            return Err(fields.unfit("its device has other queues"));
        }
        if step < NEGOTIATED && registers.queues != *untouched {
            return Err(fields.unfit("its driver has described queues before it negotiated features"));
        }
        Ok(registers)
    }

    /// The life that these registers can have.
    fn restore_life(&self, rest: &Rest) -> Result<Life, String> {
        let is_ready = self.registers.status & !status::FAILED == READY;
        let needs_reset = self.interrupt.needs_reset();
        match rest {
            Rest::Idle if !is_ready && !needs_reset => Ok(Life::Idle),
            Rest::Broken if is_ready && needs_reset => Ok(Life::Broken),
            Rest::Paused(positions) if is_ready && positions.len() == self.registers.queues.len() => {
                let queues = positions.iter().enumerate();
                let queues = queues.map(|(index, position)| self.restore_queue(index, *position));
                Ok(Life::Paused(queues.collect::<Result<_, _>>()?))
            }
            _ => Err("its life and its status contradict each other".to_owned()),
        }
    }

    fn restore_queue(&self, index: usize, position: Option<Position>) -> Result<Option<Queue>, String> {
        let queue = self.queue_of(index).map_err(|error| format!("queue {index} is not usable: {error}"))?;
        match (queue, position) {
            (None, None) => Ok(None),
            // A worker that met a fault may have left a chain behind, for which nobody will come.
            (Some(queue), Some(position))
                if position.is_quiet()
                    || self.interrupt.needs_reset() && position.is_possible(queue.size()) =>
            {
                Ok(Some(queue.at(position)))
            }
            (Some(_), Some(_)) => Err(format!("no device stands in queue {index} where it says")),
            _ => Err(format!("queue {index} is in use or not, but not both")),
        }
    }
}

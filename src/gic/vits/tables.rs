// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an ITS knows: devices, their events, and where collections go.
//!
//! Kept here and not in the guest's memory, whose tables are of a format of our own choice anyway
//! (IHI 0069 H 5.2); so there is a bound on each. All memory is taken when the VM is made. Must not
//! know registers or LPIs' states.
#![forbid(unsafe_code)]

use crate::heap::{self, NoMemory};
use crate::id::VcpuId;
use crate::spec::its::Event;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The bits of a DeviceID, an EventID and a collection's number.
pub const DEVICE_BITS: u32 = 16;
pub const EVENT_BITS: u32 = 16;
pub const COLLECTION_BITS: u32 = 8;
/// The most devices that are mapped at once.
pub const DEVICES_MAX: usize = 256;
/// The most events that are mapped at once: one for each LPI.
pub const EVENTS_MAX: usize = crate::gic::lpi::LPI_COUNT as usize;
const COLLECTIONS: usize = 1 << COLLECTION_BITS;
/// Stands for no vCPU.
const NOBODY: u8 = u8::MAX;

/// Why a command does nothing (IHI 0069 H 5.3, the errors of each command).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// The DeviceID is beyond the device table.
    DeviceOutOfRange,
    /// The EventID is beyond the device's events, or the device has more than there can be.
    EventOutOfRange,
    /// The collection is beyond the collection table.
    CollectionOutOfRange,
    /// There is no such LPI.
    LpiOutOfRange,
    /// There is no such redistributor.
    NoRedistributor,
    /// The device is not mapped.
    UnmappedDevice,
    /// The event is not mapped.
    UnmappedEvent,
    /// The collection is not mapped.
    UnmappedCollection,
    /// The event is mapped already.
    MappedEvent,
    /// There is no room for another device or event.
    Full,
    /// There is no such command.
    Unknown,
}

/// A device and how many events it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Device {
    id: u16,
    event_bits: u8,
}

/// What an event is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Translation {
    /// DeviceID above EventID.
    key: u32,
    lpi: u16,
    collection: u8,
}

/// What an ITS knows.
#[derive(Debug)]
pub struct Tables {
    /// By rising DeviceID.
    devices: Vec<Device>,
    /// By rising DeviceID and EventID.
    events: Vec<Translation>,
    /// The vCPU of each collection, or [`NOBODY`].
    collections: Box<[u8]>,
}

impl Tables {
    /// Takes all memory that it will ever need.
    pub fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            devices: heap::list(DEVICES_MAX)?,
            events: heap::list(EVENTS_MAX)?,
            collections: heap::collect(core::iter::repeat_n(NOBODY, COLLECTIONS))?,
        })
    }

    /// Forgets all devices and their events.
    pub fn forget_devices(&mut self) {
        self.devices.clear();
        self.events.clear();
    }
    /// Forgets where collections go.
    pub fn forget_collections(&mut self) {
        self.collections.fill(NOBODY);
    }

    /// Maps a device without events, also one that is mapped.
    pub fn map_device(&mut self, id: u16, event_bits: u32) -> Result<(), CommandError> {
        if event_bits > EVENT_BITS {
            return Err(CommandError::EventOutOfRange);
        }
        let device = Device { id, event_bits: event_bits.to_le_bytes()[0] };
        match self.devices.binary_search_by_key(&id, |device| device.id) {
            Ok(at) => {
                self.devices.get_mut(at).into_iter().for_each(|old| *old = device);
                self.forget_events(id);
            }
            Err(_) if self.devices.len() >= DEVICES_MAX => return Err(CommandError::Full),
            Err(at) => self.devices.insert(at, device),
        }
        Ok(())
    }
    /// Takes a device away with all its events.
    pub fn unmap_device(&mut self, id: u16) {
        if let Ok(at) = self.devices.binary_search_by_key(&id, |device| device.id) {
            self.devices.remove(at);
            self.forget_events(id);
        }
    }
    fn forget_events(&mut self, device: u16) {
        let first = u32::from(device) << EVENT_BITS;
        let start = self.events.partition_point(|event| event.key < first);
        let end = self.events.partition_point(|event| event.key >> EVENT_BITS <= device.into());
        self.events.drain(start..end);
    }

    /// Returns the key of an event of a mapped device.
    fn key(&self, event: Event) -> Result<u32, CommandError> {
        let id = u16::try_from(event.device).map_err(|_| CommandError::DeviceOutOfRange)?;
        let found = self.devices.binary_search_by_key(&id, |device| device.id);
        let device = found.ok().and_then(|at| self.devices.get(at));
        let device = device.ok_or(CommandError::UnmappedDevice)?;
        if event.event >> device.event_bits != 0 {
            return Err(CommandError::EventOutOfRange);
        }
        Ok(u32::from(id) << EVENT_BITS | event.event)
    }
    fn find(&self, event: Event) -> Result<usize, CommandError> {
        let key = self.key(event)?;
        let found = self.events.binary_search_by_key(&key, |event| event.key);
        found.map_err(|_| CommandError::UnmappedEvent)
    }

    /// Maps an event to an LPI that there is.
    pub fn map_event(
        &mut self,
        event: Event,
        lpi: u16,
        collection: u8,
    ) -> Result<(), CommandError> {
        let key = self.key(event)?;
        match self.events.binary_search_by_key(&key, |event| event.key) {
            Ok(_) => Err(CommandError::MappedEvent),
            Err(_) if self.events.len() >= EVENTS_MAX => Err(CommandError::Full),
            Err(at) => {
                self.events.insert(at, Translation { key, lpi, collection });
                Ok(())
            }
        }
    }
    /// Takes an event away and returns its LPI.
    pub fn unmap_event(&mut self, event: Event) -> Result<u32, CommandError> {
        let at = self.find(event)?;
        Ok(self.events.remove(at).lpi.into())
    }
    /// Lets an event go to another collection; both are mapped. Returns its LPI and its new vCPU.
    pub fn move_event(
        &mut self,
        event: Event,
        collection: u8,
    ) -> Result<(u32, VcpuId), CommandError> {
        let (lpi, _) = self.translate(event)?;
        let to = self.target(collection)?;
        let at = self.find(event)?;
        self.events.get_mut(at).into_iter().for_each(|event| event.collection = collection);
        Ok((lpi, to))
    }
    /// Returns the LPI of an event and the vCPU of its collection.
    pub fn translate(&self, event: Event) -> Result<(u32, VcpuId), CommandError> {
        let found = self.events.get(self.find(event)?).ok_or(CommandError::UnmappedEvent)?;
        Ok((found.lpi.into(), self.target(found.collection)?))
    }

    /// Lets a collection go to a vCPU, or to nobody.
    pub fn map_collection(&mut self, collection: u8, to: Option<VcpuId>) {
        if let Some(target) = self.collections.get_mut(usize::from(collection)) {
            *target = to.map_or(NOBODY, VcpuId::get);
        }
    }
    /// Returns the vCPU of a collection.
    pub fn target(&self, collection: u8) -> Result<VcpuId, CommandError> {
        let target = self.collections.get(usize::from(collection)).copied();
        let target = target.filter(|&target| target != NOBODY);
        target.map(VcpuId::new).ok_or(CommandError::UnmappedCollection)
    }
}

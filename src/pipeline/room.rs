//! When a person must hear that the slot runs out of the WAL that it may keep.
//!
//! In: what the slot may keep, at each look. Out: a line's worth when less than a half, and less than a fifth, of the limit
//! is left, and when it is more again. Guarantee: one line for each change, however many looks.

use super::progress::WalRoom;

/// How much of `max_slot_wal_keep_size` is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Room {
    /// At least a half, or there is no limit.
    #[default]
    Ample,
    /// Less than a half.
    BelowHalf,
    /// Less than a fifth.
    BelowFifth,
}

impl Room {
    fn of(room: WalRoom) -> Self {
        let (Some(limit), Some(free)) = (room.limit_bytes, room.free_bytes) else {
            return Room::Ample;
        };
        match () {
            () if free < limit / 5 => Room::BelowFifth,
            () if free < limit / 2 => Room::BelowHalf,
            () => Room::Ample,
        }
    }
}

/// What was said last.
#[derive(Debug, Default)]
pub struct RoomWatch {
    told: Room,
}

impl RoomWatch {
    /// Takes a look; what is to be said, if anything. From a fifth back to below a half nothing is: that is no news to act
    /// on.
    pub fn look(&mut self, room: WalRoom) -> Option<Room> {
        let now = Room::of(room);
        if now < self.told && now != Room::Ample {
            return None;
        }
        (std::mem::replace(&mut self.told, now) != now).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_said_once() {
        let mut watch = RoomWatch::default();
        let mut look = |free| {
            watch.look(WalRoom {
                limit_bytes: Some(100),
                free_bytes: free,
            })
        };
        assert_eq!(look(None), None);
        assert_eq!(look(Some(80)), None);
        assert_eq!(look(Some(49)), Some(Room::BelowHalf));
        assert_eq!(look(Some(30)), None);
        assert_eq!(look(Some(19)), Some(Room::BelowFifth));
        assert_eq!(look(Some(0)), None);
        // Between the two it goes up and down as checkpoints come.
        assert_eq!(look(Some(30)), None);
        assert_eq!(look(Some(10)), None);
        assert_eq!(look(Some(50)), Some(Room::Ample));
        assert_eq!(look(Some(10)), Some(Room::BelowFifth));
    }

    #[test]
    fn without_a_limit_there_is_room() {
        let mut watch = RoomWatch::default();
        assert_eq!(watch.look(WalRoom::default()), None);
    }
}

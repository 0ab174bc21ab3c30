//! A stream that looks healthy and answers no message.
//!
//! In: how epochs end. Out: the fault as a person is told of it. nats-server from 2.14 on keeps a stream silent after a write
//! has failed, a full disk's for example, until it is restarted, while all that it tells of the stream looks well. So a second
//! acknowledgement that does not come, behind a start that found the stream healthy, is told as what it most likely is. Of
//! several messages in flight the first gets no answer, and the next is refused since that one was not stored.

use super::fault::Fault;

/// So many refusals of messages behind one that is not stored count as much as a second time-out.
const REFUSALS: u32 = 3;

/// So many count by themselves, where the stream's last sequence is the same in all of them: somebody else's messages between
/// would have moved it.
const SAME_REFUSALS: u32 = 5;

/// Acknowledgements that did not come, one epoch after the other.
#[derive(Debug, Default)]
pub struct Mute {
    timeouts: u32,
    refusals: u32,
    /// What the last refusal said, and how often in a row.
    same: (String, u32),
}

impl Mute {
    /// An epoch that had begun has ended. `progressed`: something was acknowledged in it. `version` is the server's.
    pub fn ended(
        &mut self,
        fault: Fault,
        progressed: bool,
        stream: &str,
        version: (u16, u16),
    ) -> Fault {
        if progressed {
            self.not_begun();
        }
        match &fault {
            Fault::AckTimeout(_) => self.timeouts += 1,
            Fault::Refused { description, .. } if fault.is_out_of_sequence() => {
                self.refusals += u32::from(self.timeouts > 0);
                match self.same.0 == *description {
                    true => self.same.1 += 1,
                    false => self.same = (description.clone(), 1),
                }
            }
            _ => self.not_begun(),
        }
        let is_mute =
            self.timeouts > 1 || self.refusals >= REFUSALS || self.same.1 >= SAME_REFUSALS;
        match is_mute && version >= (2, 14) {
            true => Fault::Mute(stream.to_owned()),
            false => fault,
        }
    }

    /// An epoch could not begin: the broker does not look healthy.
    pub fn not_begun(&mut self) {
        *self = Mute::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::position::Position;

    const NOW: (u16, u16) = (2, 14);

    fn refused() -> Fault {
        refused_behind(7)
    }

    fn refused_behind(last_sequence: u64) -> Fault {
        Fault::Refused {
            position: Position {
                commit_lsn: 1.into(),
                ordinal: 2,
            },
            code: 400,
            err_code: 10_071,
            description: format!("wrong last sequence: {last_sequence}"),
        }
    }

    fn is_mute(fault: &Fault) -> bool {
        matches!(fault, Fault::Mute(_))
    }

    #[test]
    fn the_second_time_out_in_a_row_is_a_mute_stream() {
        let mut mute = Mute::default();
        let mut timeout = |progressed| mute.ended(Fault::AckTimeout(3), progressed, "S", NOW);
        assert_eq!(timeout(true), Fault::AckTimeout(3));
        assert!(is_mute(&timeout(false)) && is_mute(&timeout(false)));
        // It has answered meanwhile.
        assert_eq!(timeout(true), Fault::AckTimeout(3));
    }

    #[test]
    fn refusals_behind_a_time_out_are_of_a_mute_stream_and_others_are_not() {
        let mut mute = Mute::default();
        // Somebody else's messages come again and again.
        for sequence in 0..10 {
            let refused = refused_behind(sequence);
            assert_eq!(mute.ended(refused.clone(), false, "S", NOW), refused);
        }
        mute.ended(Fault::AckTimeout(1), true, "S", NOW);
        let told = [(); 4].map(|()| is_mute(&mute.ended(refused(), false, "S", NOW)));
        assert_eq!(told, [false, false, true, true]);
        // Somebody else's message came between: the lane goes on behind it.
        assert_eq!(mute.ended(refused(), true, "S", NOW), refused());
    }

    #[test]
    fn refusals_behind_a_message_that_is_never_stored_are_of_a_mute_stream() {
        let mut mute = Mute::default();
        let told = [(); 6].map(|()| is_mute(&mute.ended(refused(), false, "S", NOW)));
        assert_eq!(told, [false, false, false, false, true, true]);
        assert!(!is_mute(&mute.ended(refused(), true, "S", NOW)));
    }

    #[test]
    fn whatever_else_happens_between_two_time_outs_explains_the_second() {
        let mut mute = Mute::default();
        let timeout = Fault::AckTimeout(1);
        let gone = Fault::Broker("gone".into());
        mute.ended(timeout.clone(), false, "S", NOW);
        assert_eq!(mute.ended(gone.clone(), false, "S", NOW), gone);
        assert_eq!(mute.ended(timeout.clone(), false, "S", NOW), timeout);
        mute.not_begun();
        assert_eq!(mute.ended(timeout.clone(), false, "S", NOW), timeout);
    }

    #[test]
    fn an_older_server_says_that_it_cannot_write() {
        let mut mute = Mute::default();
        for _ in 0..3 {
            let told = mute.ended(Fault::AckTimeout(1), false, "S", (2, 12));
            assert_eq!(told, Fault::AckTimeout(1));
        }
    }
}

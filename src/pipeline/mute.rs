//! A stream that looks healthy and answers no message.
//!
//! In: how epochs end. Out: the fault as a person is told of it. nats-server from 2.14 on keeps a stream silent after a write
//! has failed, a full disk's for example, until it is restarted, while all that it tells of the stream looks well. So a second
//! acknowledgement that does not come, behind a start that found the stream healthy, is told as what it most likely is. Of
//! several messages in flight the first gets no answer, and the next is refused since that one was not stored.

use super::fault::Fault;

/// So many refusals of messages behind one that is not stored count as much as a second time-out.
const REFUSALS: u32 = 3;

/// Acknowledgements that did not come, one epoch after the other.
#[derive(Debug, Default)]
pub struct Mute {
    timeouts: u32,
    refusals: u32,
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
            refused if refused.is_out_of_sequence() && self.timeouts > 0 => self.refusals += 1,
            _ => self.not_begun(),
        }
        let is_mute = self.timeouts > 1 || self.refusals >= REFUSALS;
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
        Fault::Refused {
            position: Position {
                commit_lsn: 1.into(),
                ordinal: 2,
            },
            code: 400,
            err_code: 10_071,
            description: "wrong last sequence: 7".into(),
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
        for _ in 0..10 {
            assert_eq!(mute.ended(refused(), false, "S", NOW), refused());
        }
        mute.ended(Fault::AckTimeout(1), true, "S", NOW);
        let told = [(); 4].map(|()| is_mute(&mute.ended(refused(), false, "S", NOW)));
        assert_eq!(told, [false, false, true, true]);
        // Somebody else's message came between: the lane goes on behind it.
        assert_eq!(mute.ended(refused(), true, "S", NOW), refused());
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

//! Every code with which a socket is closed: stable, documented in `docs/sockets.md`, never reused.
//!
//! The ranges are Centrifugo's: up to 3499 a client connects again (after the delay that a `Disconnect` frame names, or
//! its own back-off), from 3500 on it does not, because the same attempt would end the same way.

use serde::Serialize;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $reason:literal;)*) => {
        /// Why we close a socket.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[doc = $doc])* $name,)*
        }

        impl CloseCode {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number in the close frame.
            pub fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* }
            }

            /// The text in the close frame.
            pub fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// What it means, for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*),)* }
            }
        }
    };
}

codes! {
    /// The client closed, or both sides are done.
    Normal = 1000, "bye";
    /// Bytes that are not a WebSocket frame of a client: unmasked, with reserved bits, a fragmented control frame.
    Protocol = 1002, "protocol error";
    /// A text that is not UTF-8.
    NotText = 1007, "text is not utf-8";
    /// A message larger than `events.max_message_bytes`.
    TooLarge = 1009, "message too large";
    /// The server is about to stop. Connect again after the delay of the `Disconnect` frame, and resume.
    Restart = 1012, "service restart";
    /// The credential expired and was not replaced by an `Auth` frame. Sign in or refresh, and connect again.
    Expired = 3005, "expired";
    /// The client reads slower than events come. Connect again and resume: nothing was skipped.
    Slow = 3008, "slow";
    /// The server lost track of what this client has. Connect again and resume.
    InsufficientState = 3010, "insufficient state";
    /// An operator asks the client to connect again.
    Reconnect = 3011, "reconnect";
    /// No answer to a ping in time. Connect again and resume.
    NoPong = 3012, "no pong";
    /// More frames than allowed, for too long. Wait before connecting again.
    TooManyFrames = 3013, "too many frames";
    /// The credential does not count any more: signed out, session revoked, password changed, account gone. Sign in.
    Revoked = 3500, "revoked";
    /// The client speaks a version of the protocol that is not spoken here.
    BadVersion = 3501, "version not supported";
    /// No `Hello` with a credential in time.
    Stale = 3502, "stale";
    /// An operator ended the connection.
    Forced = 3503, "disconnected by an operator";
    /// This user has as many sockets as one may have.
    TooMany = 3504, "too many sockets";
    /// A binary message: only JSON text is spoken.
    Binary = 3506, "binary is not spoken";
    /// Too many frames that could not be understood.
    TooManyErrors = 3509, "too many errors";
}

impl CloseCode {
    /// Whether a client should connect again.
    pub fn reconnect(self) -> bool {
        matches!(self.number(), 1012 | 3000..3500)
    }

    /// The code with this number.
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.number() == number)
    }
}

impl Serialize for CloseCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../docs/sockets.md");
        for code in CloseCode::ALL {
            assert!(page.contains(&format!("| {} |", code.number())), "docs/sockets.md has no row for {code:?}");
            assert_eq!(CloseCode::of(code.number()), Some(*code), "{code:?} shares its number");
            assert!(code.reason().len() <= 123);
        }
    }
}

//! What was done to a request or connection, in one word: `HOSTMESH_FLAG=` in journals, `x-hostmesh-error` on the
//! proxy's own answers, the label of `hostmesh_flags_total`.
//!
//! The words stand here and nowhere else; docs/operations.md says what each means, and a test holds it to that.

/// Makes the enum, its list and its words of one table.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// At most one for each request or connection.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Flag {
            $($(#[$doc])* $name,)*
        }

        impl Flag {
            /// All of them; each stands at its own number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

flags! {
    /// It cannot be read in one way only.
    BadRequest = "bad-request",
    /// It did not come in time.
    SlowRequest = "slow-request",
    /// A path rule applies, and the path is ambiguous.
    BadPath = "bad-path",
    /// Policy refused it.
    Denied = "denied",
    /// It was over a limit.
    Limited = "limited",
    /// A token would have opened.
    NoToken = "no-token",
    /// Its token is not believed.
    BadToken = "bad-token",
    /// The unit's gatekeeper refused it.
    Refused = "refused",
    /// The unit's gatekeeper gave no verdict.
    NoVerdict = "no-verdict",
    /// The service has no endpoint.
    NoEndpoint = "no-endpoint",
    /// Every endpoint is left alone for a time.
    Ejected = "ejected",
    /// The route leads nowhere.
    NoRoute = "no-route",
    /// As much is in use as may be.
    BreakerOpen = "breaker-open",
    /// Nothing reached the application.
    ConnectFailure = "connect-failure",
    /// The connection broke before the response.
    Reset = "reset",
    /// The response cannot be read.
    BadResponse = "bad-response",
    /// No response in time.
    Timeout = "timeout",
    /// The caller went away.
    Gone = "gone",
    /// The proxy had too much to do.
    Shed = "shed",
    /// The proxy could not do its part.
    NotReady = "not-ready",
    /// Trouble on purpose, by a route.
    Fault = "fault",
    /// Answered with another place to ask, by a route.
    Redirected = "redirected",
    /// Answered by a route.
    Responded = "responded",
    /// More than one endpoint was asked; a try: another one answered first.
    Hedged = "hedged",
    /// It is a copy.
    Mirrored = "mirrored",
}

/// The word of what may be none.
pub fn word(flag: Option<Flag>) -> &'static str {
    flag.map_or("", Flag::word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_number_and_a_word_of_its_own() {
        for (number, flag) in Flag::ALL.iter().enumerate() {
            assert_eq!(*flag as usize, number);
            let same = Flag::ALL.iter().filter(|other| other.word() == flag.word());
            assert_eq!(same.count(), 1, "{}", flag.word());
        }
    }

    #[test]
    fn each_is_explained_to_operators() {
        let page = include_str!("../../../docs/operations.md");
        for flag in Flag::ALL {
            assert!(page.contains(&format!("| `{}` |", flag.word())), "{}", flag.word());
        }
    }
}

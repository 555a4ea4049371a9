//! 06: names and their addresses.

use super::Seen::Log;
use super::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        "ZG0601",
        "a name is not resolved; its last addresses are kept",
        &[Log],
        "The name servers gave an error or no answer in time, at least for one family of its addresses (A, AAAA). What was known of the name, or of that family, goes on being used.",
        "Ask the servers of /etc/resolv.conf for it by hand; a name that never resolved has no endpoint.",
    ),
    entry(
        "ZG0602",
        "the system's resolver configuration is not usable",
        &[Log],
        "/etc/resolv.conf or /etc/hosts cannot be read or makes no sense, so no name can be resolved.",
        "Mend the file; the gateway reads it again at the next look.",
    ),
    entry(
        "ZG0603",
        "a name resolves again",
        &[Log],
        "The name servers answer for it again; what they say is used from now on.",
        "Nothing.",
    ),
    entry(
        "ZG0604",
        "a name has no addresses any more",
        &[Log],
        "The name servers said twice in a row that the name does not exist or has no addresses. A backend that is given by `dns` has no endpoint now, and its traffic goes to the next level.",
        "Where that is not meant, look at the name's zone; the name is asked for again within 30 s.",
    ),
];

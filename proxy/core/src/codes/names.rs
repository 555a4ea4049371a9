//! 06: names and their addresses.

use super::Seen::Log;
use super::{Entry, entry};

pub(super) const ENTRIES: &[Entry] = &[
    entry(
        "ZG0601",
        "a name is not resolved; its last addresses are kept",
        &[Log],
        "The name servers gave an error or no answer in time. What was known of the name goes on being used.",
        "Ask the servers of /etc/resolv.conf for it by hand; a name that never resolved has no endpoint.",
    ),
    entry(
        "ZG0602",
        "the system's resolver configuration is not usable",
        &[Log],
        "/etc/resolv.conf or /etc/hosts cannot be read or makes no sense, so no name can be resolved.",
        "Mend the file; the gateway reads it again at the next look.",
    ),
];

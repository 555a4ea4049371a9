//! Tables of the names of a configuration.

use std::collections::HashMap;

/// A table by name. Its hash is keyed anew in every process and takes a third of what the standard one
/// does; it withstands less, but whoever names clusters decides of them too.
pub(crate) type ByName<V, K = String> = HashMap<K, V, foldhash::fast::RandomState>;

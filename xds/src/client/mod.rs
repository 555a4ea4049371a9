//! A gateway whose configuration comes from a control plane.
//!
//! ```text
//! stream --messages--> session (what is asked for and answered) --update--> holdings (what serves together)
//!    ^                    |    ^                                                |
//!    `--- requests -------'    `--- verdict, once it is published --------------'--snapshot--> (the gateway)
//! ```

pub(crate) mod holdings;

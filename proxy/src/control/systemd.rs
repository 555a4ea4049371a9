//! What the service manager is told (sd_notify(3)); nothing where there is none.

use sd_notify::NotifyState;

/// Tells it all of these at once.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "systemd is not told: {states:?}");
    }
}

/// Ready for work, or for work again after [`reloading`].
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being loaded anew; its next word is [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd is not told of reloading"),
    }
}

/// No new work.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// From here on the service is that process.
pub(super) fn main_pid(pid: i32) {
    // 0 is a process that cannot be named: in another PID namespace.
    if let Some(pid) = u32::try_from(pid).ok().filter(|pid| *pid > 0) {
        tell(&[NotifyState::MainPid(pid)]);
    }
}

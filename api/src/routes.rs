//! All that can be asked of the socket: one table, from which requests are routed and against
//! which `resources/openapi.yaml` is checked.

use crate::wire::WireError;

/// What a route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// GET /
    InstanceInfo,
    /// GET /version
    Version,
    /// GET /vm/config
    FullConfig,
    /// GET /metrics
    Metrics,
    /// GET /machine-config
    MachineConfig,
    /// PUT /machine-config
    PutMachineConfig,
    /// PATCH /machine-config
    PatchMachineConfig,
    /// PUT /boot-source
    BootSource,
    /// PUT /drives/{drive_id}
    Drive,
    /// PATCH /drives/{drive_id}
    PatchDrive,
    /// PUT /network-interfaces/{iface_id}
    Network,
    /// PATCH /network-interfaces/{iface_id}
    PatchNetwork,
    /// GET /balloon
    Balloon,
    /// PUT /balloon
    PutBalloon,
    /// PATCH /balloon
    PatchBalloon,
    /// GET /balloon/statistics
    BalloonStatistics,
    /// PATCH /balloon/statistics
    PatchBalloonStatistics,
    /// PATCH /balloon/hinting/start
    StartHinting,
    /// PATCH /balloon/hinting/stop
    StopHinting,
    /// GET /balloon/hinting/status
    HintingStatus,
    /// PUT /entropy
    Entropy,
    /// PUT /vsock
    Vsock,
    /// PUT /logger
    Logger,
    /// PUT /metrics
    PutMetrics,
    /// PUT /serial
    Serial,
    /// PUT /actions
    Actions,
    /// PATCH /vm
    VmState,
    /// GET /observe
    Observe,
    /// GET /observe/health
    Health,
    /// GET /observe/events
    Events,
    /// GET /observe/trace
    Trace,
    /// POST /observe/dump
    Dump,
    /// POST /observe/nmi
    Nmi,
    /// GET /policy
    Policy,
    /// PUT /policy
    PutPolicy,
    /// What this build refuses, and its name for people.
    NotSupported(&'static str),
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path; a segment in braces stands for an id.
    pub path: &'static str,
    /// What it leads to.
    pub endpoint: Endpoint,
}

impl Route {
    /// What people call it: `PUT /drives/ID`.
    pub fn name(&self) -> String {
        let path = self.path.split_once('{');
        let path = path.map_or(self.path.to_owned(), |(before, _)| format!("{before}ID"));
        format!("{} {path}", self.method)
    }
}

const fn row(method: &'static str, path: &'static str, endpoint: Endpoint) -> Route {
    Route {
        method,
        path,
        endpoint,
    }
}

use Endpoint::NotSupported as Later;

/// The table.
pub const ROUTES: &[Route] = &[
    row("GET", "/", Endpoint::InstanceInfo),
    row("GET", "/version", Endpoint::Version),
    row("GET", "/vm/config", Endpoint::FullConfig),
    row("GET", "/metrics", Endpoint::Metrics),
    row("GET", "/machine-config", Endpoint::MachineConfig),
    row("PUT", "/machine-config", Endpoint::PutMachineConfig),
    row("PATCH", "/machine-config", Endpoint::PatchMachineConfig),
    row("PUT", "/boot-source", Endpoint::BootSource),
    row("PUT", "/drives/{drive_id}", Endpoint::Drive),
    row("PUT", "/network-interfaces/{iface_id}", Endpoint::Network),
    row("PUT", "/logger", Endpoint::Logger),
    row("PUT", "/metrics", Endpoint::PutMetrics),
    row("PUT", "/serial", Endpoint::Serial),
    row("PUT", "/actions", Endpoint::Actions),
    row("PATCH", "/vm", Endpoint::VmState),
    row("PATCH", "/drives/{drive_id}", Endpoint::PatchDrive),
    row(
        "PATCH",
        "/network-interfaces/{iface_id}",
        Endpoint::PatchNetwork,
    ),
    row("GET", "/balloon", Endpoint::Balloon),
    row("PUT", "/balloon", Endpoint::PutBalloon),
    row("PATCH", "/balloon", Endpoint::PatchBalloon),
    row("GET", "/balloon/statistics", Endpoint::BalloonStatistics),
    row(
        "PATCH",
        "/balloon/statistics",
        Endpoint::PatchBalloonStatistics,
    ),
    row("PATCH", "/balloon/hinting/start", Endpoint::StartHinting),
    row("PATCH", "/balloon/hinting/stop", Endpoint::StopHinting),
    row("GET", "/balloon/hinting/status", Endpoint::HintingStatus),
    row("PUT", "/entropy", Endpoint::Entropy),
    row("PUT", "/vsock", Endpoint::Vsock),
    row("PUT", "/cpu-config", Later("a CPU template")),
    row("PUT", "/pmem/{id}", Later("a pmem device")),
    row("PATCH", "/pmem/{id}", Later("a pmem device")),
    row("GET", "/mmds", Later("the metadata service (MMDS)")),
    row("PUT", "/mmds", Later("the metadata service (MMDS)")),
    row("PATCH", "/mmds", Later("the metadata service (MMDS)")),
    row("PUT", "/mmds/config", Later("the metadata service (MMDS)")),
    row("GET", "/hotplug/memory", Later("memory hotplug")),
    row("PUT", "/hotplug/memory", Later("memory hotplug")),
    row("PATCH", "/hotplug/memory", Later("memory hotplug")),
    row("PUT", "/snapshot/create", Later("taking a snapshot")),
    row("PUT", "/snapshot/load", Later("loading a snapshot")),
    row("GET", "/observe", Endpoint::Observe),
    row("GET", "/observe/health", Endpoint::Health),
    row("GET", "/observe/events", Endpoint::Events),
    row("GET", "/observe/trace", Endpoint::Trace),
    row("POST", "/observe/dump", Endpoint::Dump),
    row("POST", "/observe/nmi", Endpoint::Nmi),
    row("GET", "/policy", Endpoint::Policy),
    row("PUT", "/policy", Endpoint::PutPolicy),
];

/// Finds the row of a request, and the id in its path (empty where the row has none).
///
/// # Errors
/// No such row; the id is missing; a GET with a body; a PUT or PATCH without one.
pub fn find<'a>(
    method: &str,
    target: &'a str,
    has_body: bool,
) -> Result<(Route, &'a str), WireError> {
    let path = path_of(target);
    let matched = |path| {
        ROUTES
            .iter()
            .find_map(|row| matches(row, method, path).map(|id| (*row, id)))
    };
    let found = matched(path);
    match (method, has_body) {
        ("GET", true) => return Err(WireError::GetWithBody),
        // Firecracker says so before it looks at the path.
        ("PUT", false) => return Err(WireError::EmptyBody(method.to_owned())),
        ("PATCH", false) if !path.starts_with("/balloon/hinting/") => {
            return Err(WireError::EmptyBody(method.to_owned()));
        }
        _ => {}
    }
    if let Some(found) = found {
        return Ok(found);
    }
    let lacks_id = ROUTES.iter().any(|row| {
        let parent = row.path.split_once("/{").map(|(parent, _)| parent);
        row.method == method && parent == Some(path)
    });
    if lacks_id {
        return Err(WireError::EmptyId);
    }
    Err(WireError::NoRoute {
        method: method.to_owned(),
        path: path.trim_start_matches('/').to_owned(),
    })
}

/// The row of a request in [`ROUTES`], whatever else may be wrong with it; their number if it has
/// none.
pub(crate) fn number(method: &str, target: &str) -> usize {
    let path = path_of(target);
    let mut rows = ROUTES.iter();
    let row = rows.position(|row| matches(row, method, path).is_some());
    row.unwrap_or(ROUTES.len())
}

/// The path of a request target: without its query, without scheme and host where a client sends
/// them, without slashes at its end.
pub(crate) fn path_of(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() { "/" } else { trimmed }
}

/// The id in `path` when it is the row's.
fn matches<'a>(row: &Route, method: &str, path: &'a str) -> Option<&'a str> {
    if row.method != method {
        return None;
    }
    match row.path.split_once('{') {
        None => (row.path == path).then_some(""),
        Some((prefix, _)) => path.strip_prefix(prefix).filter(|id| !id.contains('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(method: &str, target: &str, has_body: bool) -> String {
        find(method, target, has_body).unwrap_err().to_string()
    }

    #[test]
    fn requests_find_their_rows() {
        let endpoint = |method, target, body| find(method, target, body).unwrap().0.endpoint;
        assert_eq!(endpoint("GET", "/", false), Endpoint::InstanceInfo);
        assert_eq!(endpoint("GET", "", false), Endpoint::InstanceInfo);
        assert_eq!(
            endpoint("GET", "/machine-config/?x=/y", false),
            Endpoint::MachineConfig
        );
        assert_eq!(
            endpoint("GET", "http://localhost/vm/config", false),
            Endpoint::FullConfig
        );
        assert_eq!(
            endpoint("GET", "http://localhost", false),
            Endpoint::InstanceInfo
        );
        let (route, id) = find("PUT", "/drives/rootfs", true).unwrap();
        assert_eq!((route.endpoint, id), (Endpoint::Drive, "rootfs"));
    }

    #[test]
    fn what_has_no_row_is_refused_as_firecracker_does() {
        let expected = "Invalid request method and/or path: GET foo.";
        assert_eq!(text("GET", "/foo", false), expected);
        assert_eq!(
            text("DELETE", "/vm", false),
            "Invalid request method and/or path: DELETE vm."
        );
        assert_eq!(text("PUT", "/foo", false), "Empty PUT request.");
        assert_eq!(text("PATCH", "/vm", false), "Empty PATCH request.");
        assert_eq!(text("GET", "/", true), "GET request cannot have a body.");
        assert_eq!(text("PUT", "/drives/", true), "The ID cannot be empty.");
        assert!(text("PUT", "/drives/a/b", true).contains("drives/a/b"));
    }

    #[test]
    fn no_row_is_twice_in_the_table() {
        for (index, row) in ROUTES.iter().enumerate() {
            let same = |other: &&Route| other.method == row.method && other.path == row.path;
            assert_eq!(
                ROUTES.iter().filter(same).count(),
                1,
                "{index}: {} {}",
                row.method,
                row.path
            );
        }
    }
}

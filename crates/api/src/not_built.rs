//! The routes of the wire contract that this server does not have yet. With a good key they answer
//! `not_implemented`, so that a client can tell them from a wrong address. A line leaves this table when
//! its route is built.

use axum::Router;
use axum::extract::MatchedPath;
use axum::routing::{MethodFilter, on};
use http::Method;
use nullspace_types::Error;

use crate::error::Failure;

/// Methods and the paths that have them. WebSockets begin with a `GET`.
const ROUTES: &[(&str, &[&str])] = &[
    // Sandboxes: volumes, and the other form of a change to the network.
    ("/v1/sandboxes/{sandbox_id}/egress", &["PATCH"]),
    ("/v1/sandboxes/{sandbox_id}/volumes", &["GET", "POST"]),
    ("/v1/sandboxes/{sandbox_id}/volumes/{attachment_id}", &["DELETE"]),
    ("/v1/sandboxes/{sandbox_id}/volumes/{attachment_id}/health", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/volumes/{attachment_id}/remount", &["POST"]),
    // Templates and their builds.
    ("/v1/templates/blobs/preflight", &["POST"]),
    ("/v1/templates/blobs/{blob_id}", &["PUT"]),
    ("/v1/templates/build", &["POST"]),
    ("/v1/templates/builds", &["POST"]),
    ("/v1/templates/builds/{build_id}", &["GET"]),
    ("/v1/templates/builds/{build_id}/logs", &["GET"]),
    ("/v1/templates/builds/{build_id}/cancel", &["POST"]),
    ("/v1/templates/builds/{build_id}/retry", &["POST"]),
    ("/v1/templates/builds/{build_id}/promote", &["POST"]),
    ("/v1/templates/{template_id}/builds", &["GET"]),
    ("/v1/templates/validate", &["POST"]),
    ("/v1/templates/plan", &["POST"]),
    ("/v1/templates/refs/{template_ref}", &["GET", "DELETE"]),
    ("/v1/templates/refs/{template_ref}/builds", &["GET"]),
    ("/v1/templates/refs/{template_ref}/tags", &["GET", "POST"]),
    ("/v1/templates/refs/{template_ref}/tags/{tag}", &["DELETE"]),
    ("/v1/templates/refs/{template_ref}/visibility", &["PATCH"]),
    ("/v1/templates/refs/{template_ref}/rename", &["POST"]),
    ("/v1/templates/refs/{template_ref}/aliases", &["GET"]),
    ("/v1/templates/refs/{template_ref}/aliases/{alias}", &["DELETE"]),
    ("/v1/templates/claims", &["POST"]),
    ("/v1/templates/claims/{token}", &["DELETE"]),
    ("/v1/templates/namespaces/{slug}", &["GET"]),
    // Warm pools.
    ("/v1/template-warm-pools", &["GET", "POST"]),
    ("/v1/template-warm-pools/{pool_id}", &["GET", "PATCH", "DELETE"]),
    ("/v1/template-warm-pools/{pool_id}/enable", &["POST"]),
    ("/v1/template-warm-pools/{pool_id}/disable", &["POST"]),
    ("/v1/template-warm-pools/{pool_id}/drain", &["POST"]),
    ("/v1/template-warm-pools/{pool_id}/reconcile", &["POST"]),
    // Volumes and the files in them.
    ("/v1/volumes", &["GET", "POST"]),
    ("/v1/volumes/by-name/{name}", &["GET"]),
    ("/v1/volumes/{volume_id}", &["GET", "DELETE"]),
    ("/v1/volumes/{volume_id}/attachments", &["GET"]),
    ("/v1/volumes/{volume_id}/files", &["GET"]),
    ("/v1/volumes/{volume_id}/files/read", &["POST"]),
    ("/v1/volumes/{volume_id}/files/write", &["POST"]),
    ("/v1/volumes/{volume_id}/files/info", &["POST"]),
    ("/v1/volumes/{volume_id}/files/exists", &["POST"]),
    ("/v1/volumes/{volume_id}/files/remove", &["POST"]),
    ("/v1/volumes/{volume_id}/files/rename", &["POST"]),
    ("/v1/volumes/{volume_id}/files/mkdir", &["POST"]),
    ("/v1/volumes/{volume_id}/files/permissions", &["POST"]),
    ("/v1/volumes/{volume_id}/files/find", &["POST"]),
    ("/v1/volumes/{volume_id}/files/search", &["POST"]),
    ("/v1/volumes/{volume_id}/files/replace", &["POST"]),
    ("/v1/volumes/{volume_id}/files/download-url", &["POST"]),
    ("/v1/volumes/{volume_id}/files/upload-url", &["POST"]),
    ("/v1/volumes/{volume_id}/file", &["GET", "PUT"]),
    ("/v1/volumes/{volume_id}/uploads", &["POST"]),
    ("/v1/volumes/{volume_id}/uploads/{upload_id}", &["GET", "DELETE"]),
    ("/v1/volumes/{volume_id}/uploads/{upload_id}/parts/{part}", &["PUT"]),
    ("/v1/volumes/{volume_id}/uploads/{upload_id}/complete", &["POST"]),
    ("/v1/volumes/{volume_id}/ws", &["GET"]),
    // The code interpreter.
    ("/v1/sandboxes/{sandbox_id}/code/execute", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/contexts", &["GET", "POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/contexts/{context_id}", &["DELETE"]),
    ("/v1/sandboxes/{sandbox_id}/code/contexts/{context_id}/restart", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/contexts/{context_id}/interrupt", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/runs", &["GET", "POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/runs/{run_id}", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/code/runs/{run_id}/cancel", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/code/artifacts", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/code/artifacts/{artifact_id}", &["GET", "DELETE"]),
    ("/v1/sandboxes/{sandbox_id}/code/artifacts/{artifact_id}/download", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/code/artifacts/{artifact_id}/preview", &["GET"]),
    // The desktop.
    ("/v1/sandboxes/{sandbox_id}/desktop/screenshot", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/screenshot/region", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/screenshot/compressed", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/click", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/move", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/mouse/down", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/mouse/up", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/drag", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/scroll", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/type", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/key", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/hotkey", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/press", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/screen_size", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/cursor", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/display", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/capabilities", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/windows", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/window/current", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/window/{window_id}/title", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/clipboard", &["GET", "PUT"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/launch", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/open", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/recording/start", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/recording/stop", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/recording", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/recording/{recording_id}", &["GET", "DELETE"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/recording/{recording_id}/download", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/stream", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/stream/start", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/stream/stop", &["POST"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/stream/auth-key", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/viewer", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/viewer/ws", &["GET"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/viewer/clipboard", &["GET", "PUT"]),
    ("/v1/sandboxes/{sandbox_id}/desktop/viewer/session", &["POST"]),
    ("/v1/desktop/viewer-assets/{*path}", &["GET"]),
    // Agent deployments.
    ("/v1/agent-deployments", &["GET", "POST"]),
    ("/v1/agent-deployments/{deployment_id}", &["GET", "PATCH", "DELETE"]),
    ("/v1/agent-deployments/{deployment_id}/versions", &["GET", "POST"]),
    ("/v1/agent-deployments/{deployment_id}/versions/{version_id}", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/versions/{version_id}/bundle", &["PUT"]),
    ("/v1/agent-deployments/{deployment_id}/runs", &["GET", "POST"]),
    ("/v1/agent-deployments/{deployment_id}/runs/{run_id}", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/runs/{run_id}/cancel", &["POST"]),
    ("/v1/agent-deployments/{deployment_id}/runs/{run_id}/logs", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/runs/{run_id}/outputs", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/services", &["GET", "POST"]),
    ("/v1/agent-deployments/{deployment_id}/services/{service_id}", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/services/{service_id}/stop", &["POST"]),
    ("/v1/agent-deployments/{deployment_id}/services/{service_id}/restart", &["POST"]),
    ("/v1/agent-deployments/{deployment_id}/services/{service_id}/logs", &["GET"]),
    ("/v1/agent-deployments/{deployment_id}/services/{service_id}/url", &["GET"]),
];

/// Every method and path that answers `not_implemented`.
pub fn routes() -> impl Iterator<Item = (Method, &'static str)> {
    ROUTES.iter().flat_map(|(path, methods)| {
        methods.iter().map(|method| (method.parse().expect("methods of the table are methods"), *path))
    })
}

/// Adds them to a router.
pub(crate) fn add<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    routes().fold(router, |router, (method, path)| {
        let filter = MethodFilter::try_from(method.clone()).expect("methods of the table are routable");
        let answer = move |path: MatchedPath| async move {
            Failure(Error::not_implemented(format_args!("{method} {}", path.as_str())))
        };
        router.route(path, on(filter, answer))
    })
}

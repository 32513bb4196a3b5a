//! Access by SSH.

use nullspace_edge_api::{Claims, Machines, Program};
use nullspace_node_api::Piped;
use nullspace_types::id::SshAccessId;
use nullspace_types::ssh::SshAccessRequest;

use super::*;

const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ somebody";

#[tokio::test]
async fn a_certificate_leads_into_its_own_sandbox_for_as_long_as_its_key_is_good() {
    let world = World::start().await;
    let body = json!({"timeout_action": "hibernate", "auto_resume": true});
    let id = world.create(body).await.unwrap().id;
    let ask = |body: Value| {
        let request: SshAccessRequest = serde_json::from_value(body).unwrap();
        world.control.ssh_access(world.caller, id, request)
    };
    let access = ask(json!({"public_key": PUBLIC_KEY, "user": "user", "ttl_seconds": 5})).await.unwrap();
    assert_eq!(access.command, "ssh -p 3022 user@127.0.0.1");
    assert!(
        access.certificate.contains("-cert-v01@openssh.com ") && access.host_key == access.relay_host_key
    );
    let left = access.expires_at.duration_since(nullspace_store::now()).as_secs();
    assert!((0..=5).contains(&left), "{left}");
    assert_eq!(code(ask(json!({"public_key": "ssh-ed25519 nonsense"})).await), Code::InvalidRequest);

    let claims = Claims {
        access_id: SshAccessId::new(),
        sandbox_id: id,
        principal: world.caller,
        user: "user".into(),
    };
    world.hibernate(id).await.unwrap();
    let inside = world.control.enter(&claims).await.unwrap();
    assert!(!inside.is_cancelled() && world.get(id).unwrap().status == SandboxStatus::Running);
    world.control.process(&claims, Program::Line("id".into()), Default::default()).await.unwrap();
    world.control.process(&claims, Program::Sftp, Default::default()).await.unwrap();
    world.node.with(|node| {
        let [Piped::Command(command), Piped::Sftp(Some(user))] = &node.piped[..] else { panic!() };
        assert!(command.shell && command.command == "id" && command.user.as_deref() == Some("user"));
        assert_eq!(user, "user");
    });
    world.hibernate(id).await.unwrap();
    assert!(inside.is_cancelled(), "its machine is gone");

    let stranger = Principal { tenant_id: TenantId::new(), ..world.caller };
    let foreign = Claims { principal: stranger, ..claims.clone() };
    assert_eq!(code(world.control.enter(&foreign).await), Code::SandboxNotFound);
    world.doors.with(|host| host.revoked.push(world.caller.key_id));
    assert_eq!(code(world.control.enter(&claims).await), Code::Unauthorized);
    assert_eq!(world.get(id).unwrap().status, SandboxStatus::Paused, "who may not come in wakes nothing");
}

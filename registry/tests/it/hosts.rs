//! TLS, client certificates, HTTP/2, and the fall back to plain HTTP on loopback.

use silk_model::Class;
use silk_registry::{Error, MANIFEST_TYPES, Manifest, Selector};
use silk_testkit::{Access, Certificates, Fake, Fault, ImageSpec};

use crate::world::World;

async fn get(world: &World, fake: &Fake) -> Result<Manifest, Error> {
    let repository = world.repository(&format!("{}/app", fake.host())).await;
    repository.manifest(&Selector::Tag("latest".into()), MANIFEST_TYPES).await
}

async fn start_tls(certificates: &Certificates, wants_client: bool) -> Fake {
    let fake = Fake::start_tls(certificates, wants_client).await;
    fake.push_image("app:latest", &ImageSpec::new());
    fake
}

#[tokio::test]
async fn loopback_falls_back_to_plain_http_and_others_do_not() {
    let fake = Fake::start().await;
    fake.push_image("app:latest", &ImageSpec::new());
    fake.require(Access::anonymous_token());
    fake.fault("manifests/latest", Fault::Redirect(format!("{}/v2/app/manifests/other", fake.url())), 1);
    fake.push_image("app:other", &ImageSpec::new());
    get(&World::new(&[]), &fake).await.unwrap();
    assert_eq!((fake.count("manifests/other"), fake.count("/token")), (2, 1), "authorization included");

    let world = World::new(&[]);
    world.hosts(&fake.host(), &format!("server = 'https://{}'", fake.host()));
    let before = fake.requests().len();
    let error = get(&world, &fake).await.unwrap_err();
    assert_eq!((error.class(), fake.requests().len()), (Class::Denied, before), "{error}");
}

#[tokio::test]
async fn a_loopback_registry_may_change_to_tls_and_back() {
    let certificates = Certificates::new();
    let (plain, tls) = (Fake::start().await, start_tls(&certificates, false).await);
    plain.push_image("app:latest", &ImageSpec::new());
    let world = World::new(&[]);
    let registry = world.registry();
    let reference = format!("{}/app", plain.host()).parse().unwrap();
    let repository = registry.repository(&reference).await.unwrap();
    let latest = Selector::Tag("latest".into());
    repository.manifest(&latest, MANIFEST_TYPES).await.unwrap();
    for _ in 0..2 {
        plain.swap_ports_with(&tls).await;
        repository.manifest(&latest, MANIFEST_TYPES).await.unwrap();
    }
    assert_eq!((plain.count("manifests"), tls.count("manifests")), (2, 1));
}

#[tokio::test]
async fn a_ca_is_trusted_for_its_host_only() {
    let certificates = Certificates::new();
    let fake = start_tls(&certificates, false).await;
    let world = World::new(&[]);
    let hosts = |options: &str| world.hosts(&fake.host(), &format!("server = '{}'\n{options}", fake.url()));
    let ca = world.file("ca.pem", &certificates.ca);
    hosts(&format!("ca = '{ca}'"));
    get(&world, &fake).await.unwrap();
    hosts("");
    let error = get(&world, &fake).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied);
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    let other = world.file("other.pem", &Certificates::new().ca);
    hosts(&format!("ca = ['{other}']"));
    get(&world, &fake).await.unwrap_err();
    hosts("skip_verify = true");
    get(&world, &fake).await.unwrap();
}

#[tokio::test]
async fn a_loopback_registry_with_tls_is_not_verified() {
    let fake = start_tls(&Certificates::new(), false).await;
    get(&World::new(&[]), &fake).await.unwrap();
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_when_named() {
    let certificates = Certificates::self_signed();
    let fake = start_tls(&certificates, false).await;
    let world = World::new(&[]);
    let ca = world.file("self.pem", &certificates.ca);
    world.hosts(&fake.host(), &format!("server = '{}'\nca = '{ca}'", fake.url()));
    get(&world, &fake).await.unwrap();
}

#[tokio::test]
async fn client_certificates_are_shown() {
    let certificates = Certificates::new();
    let fake = start_tls(&certificates, true).await;
    let world = World::new(&[]);
    let ca = world.file("ca.pem", &certificates.ca);
    let certificate = world.file("client.pem", &certificates.client);
    let key = world.file("client.key", &certificates.client_key);
    let both = world.file("both.pem", &format!("{}{}", certificates.client, certificates.client_key));
    for client in [format!("[['{certificate}', '{key}']]"), format!("'{both}'"), format!("['{both}']")] {
        world.hosts(&fake.host(), &format!("server = '{}'\nca = '{ca}'\nclient = {client}", fake.url()));
        get(&world, &fake).await.unwrap();
    }
    world.hosts(&fake.host(), &format!("server = '{}'\nca = '{ca}'", fake.url()));
    let error = get(&world, &fake).await.unwrap_err();
    assert_eq!(error.class(), Class::Denied, "{error}");
}

#[tokio::test]
async fn unusable_certificates_are_named() {
    let world = World::new(&[]);
    let empty = world.file("empty.pem", "nothing");
    for option in [format!("ca = '{empty}'"), format!("client = '{empty}'"), "ca = 'missing.pem'".to_owned()] {
        world.hosts("registry.test", &option);
        let registry = world.registry();
        let error = registry.repository(&"registry.test/a".parse().unwrap()).await.unwrap_err();
        assert!(matches!(&error, Error::Certificate { .. }), "{error}");
        assert!(error.to_string().contains(".pem: "), "{error}");
    }
}

#[tokio::test]
async fn http_2_is_spoken_where_it_is_wanted() {
    let fake = start_tls(&Certificates::new(), false).await;
    let mut world = World::new(&[]);
    for (http2, version) in [(false, "HTTP/1.1"), (true, "HTTP/2.0")] {
        world.config.http2 = http2;
        get(&world, &fake).await.unwrap();
        assert_eq!(fake.requests().last().unwrap().version, version);
    }
}

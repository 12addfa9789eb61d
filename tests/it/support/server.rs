//! A node inside the test's own process, with a clock that the test moves.

use std::thread::JoinHandle;
use std::time::Duration;

use keystead::app::{App, Listeners};
use keystead::clock::Clock;
use keystead::config::{Config, ConfigFile, Sources};
use keystead::entropy::Entropy;
use tokio::sync::oneshot;

use super::{Client, Home, statements};

/// A node that listens on a port of its own. Stopped when it is dropped.
pub struct Server {
    pub clock: Clock,
    pub app: App,
    client: Client,
    owner_key: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Home {
    /// Starts a node and waits until it is ready.
    pub async fn serve(&self) -> Server {
        self.serve_with(&[]).await
    }

    /// The same with other settings, as environment variables without their `KEYSTEAD__`.
    pub async fn serve_with(&self, settings: &[(&str, &str)]) -> Server {
        self.serve_as(settings, |app| app).await
    }

    /// A node that gives no answer more than this long to begin.
    pub async fn serve_within(&self, time_limit: Duration) -> Server {
        self.serve_as(&[], |app| app.with_time_limit(time_limit))
            .await
    }

    async fn serve_as(
        &self,
        settings: &[(&str, &str)],
        prepare: impl FnOnce(App) -> App,
    ) -> Server {
        statements::install();
        let data_dir = tempfile::tempdir_in(self.dir()).expect("the home is writable");
        let data_dir = data_dir.keep();
        let given = self.settings(&data_dir, "127.0.0.1:0");
        let given = given.iter().map(|(name, value)| (*name, value.as_str()));
        let given = given.filter(|(name, _)| settings.iter().all(|(other, _)| other != name));
        let config = Config::load(&Sources {
            file: ConfigFile::None,
            variables: given
                .chain(settings.iter().copied())
                .map(|(name, value)| (format!("KEYSTEAD__{name}").into(), value.into()))
                .collect(),
            flags: Vec::new(),
        })
        .unwrap_or_else(|error| panic!("{error}"));

        let clock = Clock::shifted();
        let master = config.master_keys().expect("the home has a master key");
        let listeners = Listeners::bind(&config).expect("a free port");
        let app = App::build(config, master, clock.clone(), Entropy::System).expect("it builds");
        let app = prepare(app);
        let (started, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let node = app.clone();
        // A thread of its own, because actix workers and the test's runtime do not mix.
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let running = node.listen(listeners).expect("the listener is good");
                let ready = node.become_ready().await;
                let _the_test_gave_up = started.send(ready.map(|()| running.address));
                let _dropped_counts_too = stopped.await;
                running.stop().await;
            });
        });
        let address = address.await.expect("the node's thread lives");
        let address = address.unwrap_or_else(|line| panic!("the node does not start: {line}"));
        Server {
            clock,
            app,
            client: Client::new(format!("http://{address}")),
            owner_key: std::fs::read_to_string(data_dir.join("owner.key")).ok(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Server {
    /// Speaks as nobody.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The owner key, if the start made one.
    pub fn owner_key(&self) -> Option<&str> {
        self.owner_key.as_deref().map(str::trim)
    }

    /// Speaks with the owner key, which only the first node of a home has.
    pub fn owner(&self) -> Client {
        self.client
            .with_key(self.owner_key().expect("the first node"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the node's is the test's.
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the node panicked"
            );
        }
    }
}

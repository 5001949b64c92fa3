//! A redis-server of one's own.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use redis::{Cmd, FromRedisValue, RedisResult};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::world::eventually;

/// Listens on a unix socket in a scratch folder; dies with this.
pub struct Server {
    dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// Keeps nothing on disk; `arguments` are lines of redis.conf.
    pub async fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self { dir, arguments, child: None };
        server.run().await;
        server
    }

    pub async fn run(&mut self) {
        let mut config = format!(
            "port 0\nunixsocket {}\nsave \"\"\nappendonly no\ndaemonize no\ndir {}\n",
            self.socket().display(),
            self.dir.path().display()
        );
        self.arguments.iter().for_each(|line| config.push_str(&format!("{line}\n")));
        let file = self.dir.path().join("redis.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("redis-server").arg(&file).stdout(Stdio::null()).stdin(Stdio::null()).spawn();
        self.child = Some(child.expect("redis-server is installed (hack/lib/deps.sh)"));
        // With a password it answers as well, only not what was asked.
        eventually("redis answers", || match self.try_do::<String>(&redis::cmd("PING")) {
            Ok(_) => true,
            Err(error) => error.code() == Some("NOAUTH"),
        })
        .await;
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// A file in the scratch folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// It hears and says nothing.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn try_do<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let client = redis::Client::open(format!("unix://{}", self.socket().display()))?;
        command.query(&mut client.get_connection()?)
    }

    /// What an operator or an intruder does by hand; the words of one command.
    pub fn redo<T: FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let mut command = Cmd::new();
        words.iter().for_each(|word| {
            command.arg(*word);
        });
        self.try_do(&command).unwrap()
    }

    /// The same for text.
    pub fn say<T: FromRedisValue>(&self, command: &str) -> T {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.redo(&words)
    }

    /// How often silk's or anybody's `command` was called.
    pub fn calls(&self, command: &str) -> u64 {
        let info: String = self.say("INFO commandstats");
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

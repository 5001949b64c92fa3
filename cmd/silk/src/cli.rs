//! The command line: what all commands share, and their list. Pure.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Pull images through containerd with silk, and see what silkd has and does.
#[derive(Debug, Parser)]
#[command(name = "silk", version = silk_model::VERSION, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Arguments {
    /// Shared by all commands.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 it failed, or fsck found damage; 2 wrong arguments or configuration;
3 silkd or containerd does not answer; 130 interrupted (143: by SIGTERM);
141 nobody reads the output.";

/// Whom to talk to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// silkd's socket
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        default_value = "/run/silk/silk.sock",
        env = "SILK_ADDRESS",
        hide_env_values = true
    )]
    pub address: PathBuf,
    /// containerd's socket (pull)
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock",
        env = "CONTAINERD_ADDRESS",
        hide_env_values = true
    )]
    pub containerd: PathBuf,
    /// containerd's namespace (pull); kubelet's is k8s.io
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        default_value = "default",
        env = "CONTAINERD_NAMESPACE",
        hide_env_values = true
    )]
    pub namespace: String,
    /// Snapshotter to unpack for, as containerd's configuration names it (pull)
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        default_value = "silk",
        env = "CONTAINERD_SNAPSHOTTER",
        hide_env_values = true
    )]
    pub snapshotter: String,
    /// silkd's configuration, of which the tables registry (pull, index), pull and share (index) are used [default: /etc/silk/config.toml, which need not exist]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The commands; clap takes the help of each from its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Pull(crate::pull::Arguments),
    Index(crate::index::Arguments),
    Status(crate::status::Arguments),
    Top(crate::top::Arguments),
    Explain(crate::explain::Arguments),
    Fsck(crate::fsck::Arguments),
    Gc(crate::gc::Arguments),
    Profile(crate::profile::Arguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn globals_stand_on_either_side() {
        for line in ["silk -n k8s.io --address /x pull busybox", "silk pull busybox -n k8s.io --address /x"] {
            let Arguments { globals, command } = parse(line).unwrap();
            assert_eq!((globals.namespace.as_str(), globals.address.to_str()), ("k8s.io", Some("/x")), "{line}");
            let Command::Pull(pull) = command else { panic!("{line} is a pull") };
            assert_eq!(pull.image.to_string(), "docker.io/library/busybox:latest");
        }
    }

    #[test]
    fn a_pull_names_the_image_as_other_clients_do() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let Command::Pull(pull) = parse(&format!("silk pull a:1@{digest}")).unwrap().command else { panic!("a pull") };
        assert_eq!(pull.image.to_string(), format!("docker.io/library/a@{digest}"));
    }

    #[test]
    fn arguments_are_checked() {
        let gc = |line| match parse(line).unwrap().command {
            Command::Gc(gc) => gc.keep,
            other => panic!("{other:?}"),
        };
        assert_eq!(gc("silk gc"), None);
        assert_eq!(gc("silk gc --keep 10GiB"), Some(10 << 30));
        for bad in [
            "silk",
            "silk pull",
            "silk pull case/UPPER",
            "silk index",
            "silk pull a --platform linux",
            "silk pull a --platform linux/arm/v7/x",
            "silk gc --keep lots",
            "silk explain",
        ] {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}

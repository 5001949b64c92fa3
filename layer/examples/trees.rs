//! Prints the trees of a stack of layers: `trees base.tar next.tar ...`, uncompressed tars, base first.
//!
//! For comparing with what other programs unpack. One line `layer <n>` or `error <n> <class> <message>` each (an error
//! ends the output), then a line for each name, sorted, its fields separated by spaces:
//! path, kind, mode, owner, group, time, device or size, inode (the first of its names), attributes, content or target;
//! bytes in hexadecimal.

use std::{collections::BTreeMap, fs, process::ExitCode};

use silk_layer::{
    tar::{Limits, Scanner},
    tree::{Below, NodeId, NodeKind, ROOT, Source, Tree},
};

fn main() -> ExitCode {
    let mut trees: Vec<Tree> = Vec::new();
    let mut data = Vec::new();
    for (index, path) in std::env::args().skip(1).enumerate() {
        data.push(fs::read(path).expect("a readable tar"));
        match tree(&data[index], &trees) {
            Ok(tree) => {
                println!("layer {index}");
                print(&tree, &data);
                trees.push(tree);
            }
            Err(message) => {
                println!("error {index} {message}");
                return ExitCode::SUCCESS;
            }
        }
    }
    ExitCode::SUCCESS
}

fn tree(tar: &[u8], below: &[Tree]) -> Result<Tree, String> {
    let mut scanner = Scanner::new(Limits::default());
    let toc = scanner.push(tar).and_then(|()| scanner.finish());
    let toc = toc.map_err(|error| format!("{:?} {error}", error.class()))?;
    let layers: Vec<&Tree> = below.iter().rev().collect();
    let place = if below.is_empty() { Below::Base } else { Below::Above(&layers) };
    let built = Tree::build(&toc, place).map_err(|error| format!("{:?} {error}", error.class()))?;
    Ok(built.tree)
}

fn print(tree: &Tree, data: &[Vec<u8>]) {
    let mut names = BTreeMap::new();
    let mut stack = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = stack.pop() {
        if let NodeKind::Dir(children) = &tree.node(id).kind {
            for (name, child) in children {
                let separator: &[u8] = if id == ROOT { b"" } else { b"/" };
                stack.push(([&path[..], separator, name].concat(), *child));
            }
        }
        names.insert(path, id);
    }
    let mut first = BTreeMap::new();
    for (path, id) in &names {
        let inode = hex(first.entry(*id).or_insert(path));
        println!("{}", line(tree, (path, *id), &inode, data));
    }
}

fn line(tree: &Tree, (path, id): (&[u8], NodeId), inode: &str, data: &[Vec<u8>]) -> String {
    let node = tree.node(id);
    let (kind, number, content) = match &node.kind {
        NodeKind::Dir(_) => ("dir", "-".into(), Vec::new()),
        NodeKind::Symlink(target) => ("symlink", "-".into(), target.clone()),
        NodeKind::Char(major, minor) => ("char", format!("{major}:{minor}"), Vec::new()),
        NodeKind::Block(major, minor) => ("block", format!("{major}:{minor}"), Vec::new()),
        NodeKind::Fifo => ("fifo", "-".into(), Vec::new()),
        NodeKind::File { size, extents } => {
            let mut content = vec![0; *size as usize];
            for extent in extents {
                let layer = match extent.source {
                    Source::Own => data.len() - 1,
                    Source::Below(n) => data.len() - 1 - n as usize,
                };
                let from = &data[layer][extent.offset as usize..][..extent.len as usize];
                content[extent.logical as usize..][..from.len()].copy_from_slice(from);
            }
            ("file", size.to_string(), content)
        }
    };
    let xattrs: Vec<String> = node.xattrs.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect();
    let (mode, uid, gid, time) = (node.mode, node.uid, node.gid, node.mtime);
    let (path, time, xattrs, content) =
        (hex(path), format!("{}.{:09}", time.secs, time.nanos), xattrs.join(","), hex(&content));
    format!("/{path} {kind} {mode:o} {uid} {gid} {time} {number} /{inode} [{xattrs}] ={content}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

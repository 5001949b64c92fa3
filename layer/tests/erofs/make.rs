//! Trees built by hand over a data file of pseudo-random bytes.

use std::{collections::BTreeMap, fs, path::PathBuf};

use silk_layer::{
    erofs::{Device, Plan},
    toc::Time,
    tree::{Node, NodeId, NodeKind, Source, SourceExtent, Tree},
};
use silk_model::Digest;

/// A tree and the bytes that its files are made of. Sources share the bytes, each with its own variation.
pub struct Make {
    pub tree: Tree,
    data: Vec<u8>,
}

pub const SOURCES: [Source; 3] = [Source::Own, Source::Below(1), Source::Below(3)];

impl Make {
    pub fn new(data: usize) -> Self {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let root = node(NodeKind::Dir(BTreeMap::new()), 0o755);
        Self { tree: Tree { nodes: vec![root] }, data: (0..data).map(|_| next()).collect() }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.tree.nodes[id.0 as usize]
    }

    pub fn link(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        let NodeKind::Dir(names) = &mut self.node(dir).kind else { panic!("no directory") };
        names.insert(name.into(), id);
    }

    pub fn special(&mut self, dir: NodeId, name: &[u8], kind: NodeKind) -> NodeId {
        let id = NodeId(self.tree.nodes.len() as u32);
        self.tree.nodes.push(node(kind, 0o644));
        self.link(dir, name, id);
        id
    }

    pub fn dir(&mut self, parent: NodeId, name: &[u8], mode: u32) -> NodeId {
        let id = self.special(parent, name, NodeKind::Dir(BTreeMap::new()));
        self.node(id).mode = mode;
        id
    }

    pub fn symlink(&mut self, dir: NodeId, name: &[u8], target: &[u8]) -> NodeId {
        let id = self.special(dir, name, NodeKind::Symlink(target.to_vec()));
        self.node(id).mode = 0o777;
        id
    }

    /// Extents are (logical, offset, len) in the layer's own data.
    pub fn file(&mut self, dir: NodeId, name: &[u8], size: u64, extents: &[(u64, u64, u64)]) -> NodeId {
        let extent =
            |&(logical, offset, len): &(u64, u64, u64)| SourceExtent { source: Source::Own, logical, offset, len };
        self.special(dir, name, NodeKind::File { size, extents: extents.iter().map(extent).collect() })
    }

    pub fn devices(&self) -> Vec<Device> {
        SOURCES
            .map(|source| Device {
                source,
                size: self.data.len() as u64,
                layer: Digest::of(format!("{source:?}").as_bytes()),
            })
            .to_vec()
    }

    /// A source's whole data file.
    pub fn data(&self, source: Source) -> Vec<u8> {
        let by = match source {
            Source::Own => 0,
            Source::Below(n) => n as u8,
        };
        self.data.iter().map(|b| b ^ by).collect()
    }

    /// What a file of these extents reads as, from `from` up to at most `len` bytes.
    pub fn contents(&self, size: u64, extents: &[SourceExtent], from: u64, len: u64) -> Vec<u8> {
        let end = (from + len).min(size);
        let mut out = vec![0; (end - from) as usize];
        for e in extents {
            for at in e.logical.max(from)..(e.logical + e.len).min(end) {
                let by = if let Source::Below(n) = e.source { n as u8 } else { 0 };
                out[(at - from) as usize] = self.data[(e.offset + at - e.logical) as usize] ^ by;
            }
        }
        out
    }
}

fn node(kind: NodeKind, mode: u32) -> Node {
    Node { kind, mode, uid: 0, gid: 0, mtime: Time { secs: 1_700_000_000, nanos: 5 }, xattrs: BTreeMap::new() }
}

/// A written image with its data files, in a directory of its own.
pub struct Image {
    pub bytes: Vec<u8>,
    pub sources: Vec<Source>,
    pub path: PathBuf,
    pub devices: Vec<PathBuf>,
    pub dir: tempfile::TempDir,
}

impl Image {
    pub fn of(make: &Make) -> Self {
        let devices = make.devices();
        let plan = Plan::new(&make.tree, &devices, *b"0123456789abcdef").unwrap();
        let mut bytes = Vec::new();
        let mut copied = 0;
        plan.write(&mut bytes, &mut |source, offset, out| {
            copied += out.len();
            out.copy_from_slice(&make.data(source)[offset as usize..][..out.len()]);
            Ok(())
        })
        .unwrap();
        assert_eq!(bytes.len() as u64, plan.size());
        assert!(copied as u64 <= plan.copied());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, &bytes).unwrap();
        let write = |source: &Source| {
            let path = dir.path().join(format!("{source:?}"));
            let mut data = make.data(*source);
            data.resize(data.len().next_multiple_of(4096), 0);
            fs::write(&path, data).unwrap();
            path
        };
        let sources = plan.sources().to_vec();
        let devices = sources.iter().map(write).collect();
        Self { bytes, sources, path, devices, dir }
    }
}

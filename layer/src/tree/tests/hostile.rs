//! Archives that ask for more than they have bytes: each ends in bounded work and memory.

use silk_model::Class;

use super::*;

/// A list of `len` bytes that names as many users as fit, as the default list of the directory that is the first of `lines`.
fn with_default_list(len: usize, lines: &[String]) -> Vec<Entry<'static>> {
    let users = vec![(2, 7); (len - 4) / 8 - 4];
    let list = acl(&[&[(1, 7)][..], &users, &[(4, 5), (16, 7), (32, 5)]].concat());
    assert_eq!(list.len(), len);
    let mut entries: Vec<_> = lines.iter().map(|line| entry(line)).collect();
    entries[0].xattrs = vec![(acl::DEFAULT.to_vec(), list)];
    entries
}

/// What inodes take over from others is in no proportion to the archive: 64 KB each here, or 128.
#[test]
fn attributes_are_not_copied_without_end() {
    // The entry with which it is too much.
    let last = |entries: &[Entry<'_>], layers: &[&Tree]| {
        // The tree would be a message of gigabytes.
        let error = Tree::build(&toc(entries), Below::Above(layers)).map(drop).unwrap_err();
        let too_many = TreeFault::TooManyAttributes(budget::MAX_COPIED);
        assert_eq!((error.class(), &error.fault), (Class::Unsupported, &too_many));
        error.path
    };
    // Directories that are implied in one with a default access list.
    let deep = (0..3).map(|n| format!("a/{n}/{}f", "d/".repeat(1500)));
    let deep = with_default_list(65_532, &[vec!["a/".into()], deep.collect()].concat());
    assert!(last(&deep, &[]).starts_with("a/1/d/"), "the first path alone is not too much");
    // Files in one. Their own lists take the place of what they got, so that little stays in memory.
    let own = acl(&[(1, 6), (2, 6), (4, 4), (16, 6), (32, 4)]);
    let files = |count| {
        let lines = [vec!["d/".into()], (0..count).map(|n| format!("d/{n}")).collect()].concat();
        let mut files = with_default_list(65_532, &lines);
        files[1..].iter_mut().for_each(|file| file.xattrs = vec![(acl::ACCESS.to_vec(), own.clone())]);
        files
    };
    assert_eq!(last(&files(5000), &[]), "d/4057");
    // Hard links to a layer below, where there is little room left.
    let mut below = entries(&["0", "1", "2", "3", "4", "5", "6", "7"]);
    below.iter_mut().for_each(|file| file.xattrs = vec![(b"user.a".to_vec(), vec![0; 65_535])]);
    let below = Tree::build(&toc(&below), Below::Base).unwrap().tree;
    let links = (0..8).map(|n| entry(&format!("l{n} = {n}")));
    assert_eq!(last(&files(4050).into_iter().chain(links).collect::<Vec<_>>(), &[&below]), "l7");
    // Names of one directory below, each of which leads to a directory that is implied.
    let names: Vec<_> = (0..3000).map(|n| format!("s{n} -> d")).collect();
    let mut below: Vec<_> = [vec!["d/".into()], names].concat().iter().map(|line| entry(line)).collect();
    let value = || vec![0; 65_000];
    below[0].xattrs = vec![(b"user.a".to_vec(), value()), (b"user.b".to_vec(), value())];
    let below = Tree::build(&toc(&below), Below::Base).unwrap().tree;
    let above: Vec<_> = (0..3000).map(|n| entry(&format!("s{n}/x"))).collect();
    assert_eq!(last(&above, &[&below]), "s2045/x");
}

/// Work is bounded by steps, whatever the clock says.
#[test]
fn hostile_archives_end() {
    let some = |count: u32, make: &dyn Fn(u32) -> String| {
        let lines: Vec<String> = (0..count).map(make).collect();
        toc(&entries(&lines.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let many = |make: &dyn Fn(u32) -> String| some(200_000, make);
    // A large tree, and as many markers that would each walk it.
    let half = 100_000;
    let markers = many(&|n| if n < half { format!("a/{}/{n}", n % 1000) } else { "a/.wh..wh..opq".into() });
    assert_eq!(show(&Tree::build(&markers, Below::Base).unwrap().tree), "a/");
    let declared = many(&|n| if n < half { format!("a/{n}/") } else { ".wh..wh..opq".into() });
    assert_eq!(Tree::build(&declared, Below::Base).unwrap().tree.inodes(), 1);
    // Build and remove again.
    let churn = many(&|n| if n % 2 == 0 { "d/e/f/g/".into() } else { "d -> e".into() });
    assert_eq!(show(&Tree::build(&churn, Below::Above(&[])).unwrap().tree), "d>e e/ e/e/ e/e/f/ e/e/f/g/");
    // Paths through chains of links, each of many steps.
    let target = "./".repeat(2000);
    let chain = |n: u32| match n {
        0..250 => format!("l{n} -> {target}l{}", n + 1),
        250 => "l250 -> x".into(),
        _ => format!("l0/{n}/x"),
    };
    let fault = Tree::build(&some(20_000, &chain), Below::Base).err().map(|error| error.fault);
    assert_eq!(fault, Some(TreeFault::TooMuchWork));
    // Deep paths that share nothing.
    let deep = some(100, &|n| format!("{n}/{}f", "d/".repeat(800)));
    let error = Tree::build(&deep, Below::Base).map(drop).unwrap_err();
    assert_eq!((error.class(), error.fault), (Class::Unsupported, TreeFault::TooManyImplied(65_536)));
}

#[test]
fn depth_is_bounded_and_never_recursed_into() {
    let deep = "d/".repeat(2000);
    assert_eq!(above(&[&deep], &[]).inodes(), 2001);
    assert_eq!(fault(&[&deep, &format!("l -> {deep}"), &format!("l/{}x", "e/".repeat(60))]), TreeFault::TooDeep);
}

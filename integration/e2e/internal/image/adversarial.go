package image

import (
	"fmt"
	"strings"
	"time"
)

// Case is an image that is easy to get wrong.
type Case struct {
	Name  string
	Image Image
}

// Adversarial is the catalogue. What is right is what containerd's overlayfs makes of the same image.
func Adversarial() []Case {
	var cases []Case
	add := func(name string, layers ...[]Entry) {
		image := Image{}
		for _, entries := range layers {
			image.Layers = append(image.Layers, NewLayer(Gzip, entries...))
		}
		cases = append(cases, Case{name, image})
	}
	add("whiteouts", base(), whiteouts())
	add("opaque", base(), []Entry{
		dir("d/"), file("d/before", "1"), file("d/.wh..wh..opq", ""), file("d/after", "2"), dir("d/sub/"), file("d/sub/new", "3"),
		file("e/.wh..wh..opq", ""), file("e/only", "4"),
	}, []Entry{file("d/third", "5"), file("e/.wh.only", "")})
	add("hard links", hardLinks(), []Entry{file("chain/.wh.a", ""), file("chain/b", "replaced")})
	add("long names", longNames())
	add("implied directories", []Entry{
		{Name: "opt/", Type: Dir, Mode: 0o700, UID: 1000, GID: 1001},
		{Name: "opt/in/", Type: Dir, Mode: 0o2755, UID: 7, Pax: map[string]string{"SCHILY.xattr.user.kept": "yes"}},
		file("opt/in/old", "old"),
	}, []Entry{file("opt/in/new", "new"), file("made/up/deep", "x")}, []Entry{file("opt/.wh.absent", ""), file("made/up/more", "y")})
	add("file and directory", []Entry{file("x", "file"), dir("y/"), file("y/inner", "1"), link("z", "y")},
		[]Entry{dir("x/"), file("x/inner", "2"), file("y", "now a file"), dir("z/"), file("z/inner", "3")},
		[]Entry{file("x", "file again"), dir("y/"), file("y/third", "4"), link("z", "x")})
	add("replaced in one layer", []Entry{
		file("x", "file"), dir("x/"), file("x/inner", "1"), file("x", "file again"),
		link("l", "x"), file("l", "no link"), dir("m/"), file("m/a", "1"), link("m", "l"), dir("n/"), file("n/a", "2"), dir("n/"),
	})
	add("sparse files", sparse())
	add("sparse files between blocks", sparseBetween()...)
	add("empty layers", []Entry{}, base(), []Entry{}, whiteouts(), []Entry{})
	add("names that are not UTF-8", []Entry{
		file("latin-\xe9", "1"), dir("\xff\xfe/"), file("\xff\xfe/\x80\x81", "2"), link("link-\xc3", "latin-\xe9"),
		{Name: strings.Repeat("\xf0", 120), Body: []byte("3"), GNU: true}, file("new\nline and \"quote\" and \\", "4"), file("tab\t", "5"),
	}, []Entry{file(".wh.latin-\xe9", ""), file("\xff\xfe/.wh.\x80\x81", "")})
	add("times", times())
	add("duplicates", []Entry{
		file("a", "first"), file("b", "b"), {Name: "a", Body: []byte("second"), Mode: 0o600, UID: 5},
		dir("d/"), {Name: "d/", Type: Dir, Mode: 0o711, UID: 9}, file("d/x", "x"), {Name: "d/", Type: Dir, Mode: 0o751, Time: time.Unix(99, 0)},
		{Name: "c", Type: Hard, Link: "a"}, file("a", "third"),
	})
	add("special files", special())
	add("extended attributes", extended())
	add("access lists", accessLists(), []Entry{file("d/later", "1"), dir("d/dir/"), file("d/implied/x", "2")})
	add("ways of writing a name", []Entry{
		file("/absolute", "1"), file("./dotted", "2"), file("a//b///c", "3"), dir("a/"), file("a/./d", "4"), file("a/up/../e", "5"),
		{Name: "./", Type: Dir, Mode: 0o751, UID: 3, GID: 4, Time: time.Unix(77, 5)},
	})
	add("through links", []Entry{dir("real/"), link("way", "real"), file("way/file", "1"), link("abs", "/real"), file("abs/file2", "2")},
		[]Entry{file("way/new", "3"), file("abs/.wh.file", "")})
	add("numbers", []Entry{
		{Name: "big-id", UID: 3_000_000, GID: 4_000_000_000}, {Name: "pax-id", Pax: map[string]string{"uid": "70000", "gid": "70001"}},
		{Name: "all-modes", Mode: 0o7777}, {Name: "none", Mode: 0o10000}, {Name: "sticky/", Type: Dir, Mode: 0o1777},
	})
	add("global records", []Entry{
		{Global: true, Pax: map[string]string{"comment": "of no meaning", "mtime": "1500000000.5", "uid": "12"}}, file("a", "1"),
		{Name: "b", Pax: map[string]string{"uid": "13"}}, {Global: true, Pax: map[string]string{"uid": "14"}}, file("c", "2"),
	})
	add("aufs leftovers", base(), []Entry{dir(".wh..wh.plnk/"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("kept", "1")})
	add("sizes", sizes())
	add("a hundred layers", hundred()...)
	add("a hundred thousand entries", crowd())
	return append(cases, encodings()...)
}

func file(name, body string) Entry { return Entry{Name: name, Body: []byte(body)} }
func dir(name string) Entry        { return Entry{Name: name, Type: Dir} }
func link(name, to string) Entry   { return Entry{Name: name, Type: Symlink, Link: to, Mode: 0o777} }

func base() []Entry {
	return []Entry{
		dir("d/"), file("d/a", "a"), dir("d/sub/"), file("d/sub/b", "b"), dir("e/"), file("e/c", "c"), file("f", "f"),
		dir("g/"), file("g/h", "h"), link("s", "f"), dir("deep/"), dir("deep/er/"), file("deep/er/x", "x"),
	}
}

func whiteouts() []Entry {
	return []Entry{
		file(".wh.d", ""), dir("d/"), file("d/new", "new"), // a directory that is removed and made again
		file(".wh.e", ""),                       // one that is removed
		file(".wh.f", ""), file("f", "f again"), // a file
		file("g/.wh.h", ""), file("g/.wh.never-there", ""), file(".wh.s", ""),
		file("deep/er/.wh.x", ""), dir("deep/er/"),
	}
}

func hardLinks() []Entry {
	hard := func(name, to string) Entry { return Entry{Name: name, Type: Hard, Link: to} }
	return []Entry{
		dir("chain/"), {Name: "chain/a", Body: []byte("shared"), Mode: 0o4755, UID: 3, Pax: map[string]string{"SCHILY.xattr.user.k": "v"}},
		hard("chain/b", "chain/a"), hard("chain/c", "chain/b"), hard("d", "./chain/c"), hard("e", "/d"),
		link("sym", "chain/a"), hard("sym2", "sym"),
		file("t", "t"), hard("u", "t"), file("t", "other"), hard("v", "u"),
		{Name: "fifo", Type: Fifo}, hard("fifo2", "fifo"), {Name: "empty"}, hard("empty2", "empty"),
		file("self", "1"), file("over", "2"), hard("over", "self"),
	}
}

func longNames() []Entry {
	name, path := strings.Repeat("f", 255), Long(4000)
	entries := []Entry{
		file(name, "255"), link(strings.Repeat("l", 255), strings.Repeat("t", 1000)), link("far", Long(4000)),
		{Name: "gnu/" + strings.Repeat("g", 255), Body: []byte("gnu"), GNU: true},
		{Name: strings.Repeat("k", 101), Type: Symlink, Link: strings.Repeat("m", 300), GNU: true},
		{Name: strings.Repeat("e", 100), Body: []byte("a hundred bytes fill the field")},
		file(path, "4000"), {Name: "hard", Type: Hard, Link: path},
	}
	for cut := strings.LastIndex(path, "/"); cut > 0; cut = strings.LastIndex(path[:cut], "/") {
		entries = append(entries, dir(path[:cut]+"/"))
	}
	return entries
}

func times() []Entry {
	at := func(name string, seconds, nanos int64) Entry {
		return Entry{Name: name, Time: time.Unix(seconds, nanos)}
	}
	entries := []Entry{
		at("1969", -1, 0), at("1969-and-a-bit", -2, 500_000_000), at("1901", -1<<31, 0), at("nanos", 1_500_000_000, 123_456_789),
		at("one-nano", 1_500_000_000, 1), at("2038", 1<<31, 0), at("2400", 13_569_465_600, 999_999_999), at("micro", 10, 1000),
	}
	entries[0].Body = []byte("x")
	return append(entries,
		Entry{Name: "dir/", Type: Dir, Time: time.Unix(-5, 7)}, file("dir/in", "1"),
		Entry{Name: "short-fraction", Pax: map[string]string{"mtime": "1234.5"}},
		Entry{Name: "long-fraction", Pax: map[string]string{"mtime": "1234.123456789987"}},
		Entry{Name: "with-atime", Pax: map[string]string{"atime": "5.5", "ctime": "6.5", "mtime": "7.25"}},
		Entry{Name: "link", Type: Symlink, Link: "1969", Time: time.Unix(-3, 1)},
	)
}

func special() []Entry {
	return []Entry{
		{Name: "dev/null", Type: Char, Mode: 0o666, Major: 1, Minor: 3}, {Name: "dev/sda", Type: Block, Mode: 0o660, GID: 6, Major: 8},
		{Name: "dev/large", Type: Char, Major: 4095, Minor: 1_048_575}, {Name: "pipe", Type: Fifo, Mode: 0o600, UID: 2},
		link("absolute", "/dev/null"), link("dangling", "nowhere"), link("climbing", "../../../etc/passwd"),
		{Name: "owned", Type: Symlink, Link: "pipe", UID: 8, GID: 9, Mode: 0o777}, {Name: "setuid", Mode: 0o4755, Body: []byte("s")},
	}
}

func extended() []Entry {
	with := func(e Entry, attributes ...string) Entry {
		e.Pax = map[string]string{}
		for i := 0; i < len(attributes); i += 2 {
			e.Pax["SCHILY.xattr."+attributes[i]] = attributes[i+1]
		}
		return e
	}
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return []Entry{
		with(file("user", "1"), "user.a", "1", "user.b", "", "user.binary", "\x00\xff\n="),
		with(file("capable", "2"), "security.capability", capability),
		with(dir("opaque/"), "trusted.overlay.opaque", "y", "user.seen", "yes"), file("opaque/x", "x"),
		with(file("whiteout", "3"), "trusted.overlay.whiteout", "y", "trusted.other", "x"),
		with(file("large", "4"), "user.large", strings.Repeat("v", 3000)),
		with(dir("dir/"), "user.on.a.directory", "1"),
		with(file("same", "5"), "user.a", "1"), with(file("same2", "6"), "user.a", "1"),
	}
}

// accessLists are POSIX access control lists: of files and directories, passed on, and odd ones that the kernel corrects or leaves out.
func accessLists() []Entry {
	with := func(e Entry, kind, list string) Entry {
		e.Pax = map[string]string{"SCHILY.xattr.system.posix_acl_" + kind: list}
		return e
	}
	odd := strings.ReplaceAll(aclExtended, "\xff\xff\xff\xff", "\x05\x00\x00\x00")
	return []Entry{
		with(file("a", "1"), "access", aclExtended), with(file("minimal", "2"), "access", aclMinimal), with(file("odd", "3"), "access", odd),
		with(Entry{Name: "setuid", Mode: 0o4750}, "access", aclExtended), with(file("version", "4"), "access", "\x01"+aclExtended[1:]),
		with(dir("d/"), "default", aclExtended), file("d/file", "5"), dir("d/dir/"), file("d/implied/file", "6"), link("d/link", "file"),
		{Name: "d/pipe", Type: Fifo, Mode: 0o666}, {Name: "d/hard", Type: Hard, Link: "a", Mode: 0o600},
		with(dir("empty/"), "default", aclMinimal[:4]), with(file("none", "7"), "access", ""),
	}
}

func sizes() []Entry {
	var entries []Entry
	for _, size := range []int{0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 65_537, 1 << 20, 1<<20 + 3} {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(i * (size + 7) >> 3)
		}
		entries = append(entries, Entry{Name: fmt.Sprintf("size-%d", size), Body: body})
	}
	size := "5"
	return append(entries, Entry{Name: "pax-size", Body: []byte("12345"), Size: new(int64), Pax: map[string]string{"size": size}})
}

// hundred makes layers that each add, change and remove something.
func hundred() (layers [][]Entry) {
	for i := range 100 {
		entries := []Entry{
			dir("all/"), file(fmt.Sprintf("all/%02d", i), fmt.Sprint(i)), file("changed", fmt.Sprint(i)),
			dir(fmt.Sprintf("turn-%d/", i%7)), file(fmt.Sprintf("turn-%d/file", i%7), fmt.Sprint(i)),
		}
		if i%3 == 2 {
			entries = append(entries, file(fmt.Sprintf("all/.wh.%02d", i-1), ""))
		}
		layers = append(layers, entries)
	}
	return layers
}

func crowd() []Entry {
	entries := []Entry{dir("crowd/")}
	for i := range 100_000 {
		entries = append(entries, Entry{Name: fmt.Sprintf("crowd/%x-%d", i*2_654_435_761&0xffffffff, i)})
	}
	return entries
}

// encodings are the same three layers in all the ways that registries hold them; a file with the case's name keeps their diff IDs apart.
func encodings() (cases []Case) {
	add := func(name string, image Image, compressions ...Compression) {
		own := file("encoding", name)
		for i, entries := range [][]Entry{append(base(), own), append(sizes(), own), append(whiteouts(), own)} {
			image.Layers = append(image.Layers, NewLayer(compressions[i%len(compressions)], entries...))
		}
		cases = append(cases, Case{name, image})
	}
	add("gzip members", Image{}, GzipMembers)
	add("zstd", Image{}, Zstd)
	add("plain", Image{}, Plain)
	add("mixed compression", Image{}, Gzip, Zstd, Plain)
	add("docker", Image{Docker: true}, Gzip)
	add("docker plain", Image{Docker: true}, Plain)
	add("docker index", Image{Docker: true, Index: true}, Gzip)
	add("oci index", Image{Index: true}, Zstd)
	return cases
}

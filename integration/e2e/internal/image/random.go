package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// Random makes an image of one to six layers of odd entries: what real tools never write together, but a tar can say. The same seed
// makes the same image.
func Random(seed uint64) Image {
	r := &random{Rand: rand.New(rand.NewPCG(seed, 0))}
	result := Image{}
	for range 1 + r.IntN(6) {
		if len(result.Layers) > 0 && r.chance(5) {
			result.Layers = append(result.Layers, pick(r, result.Layers))
			continue
		}
		tar := r.layer()
		if r.base {
			// No other image's, or containerd would take that one's.
			tar = slices.Concat(WriteTar(file("seed", fmt.Sprint(seed)))[:1024], tar)
		}
		// By the tar, so that one layer is one blob: silk learns no second one of what it has, and a fleet waits for it in vain.
		sum := sha256.Sum256(tar)
		encoder := random{Rand: rand.New(rand.NewPCG(binary.BigEndian.Uint64(sum[:]), 0))}
		result.Layers = append(result.Layers, encoder.encoded(tar))
	}
	return result
}

// random knows just enough of what it has made for most of its layers to be acceptable.
type random struct {
	*rand.Rand
	// here are the types of this layer's paths, below those of the layers below.
	here, below map[string]byte
	// solid are the paths where some layer below has anything but a directory. containerd fails at what is implied under them.
	solid   map[string]bool
	base    bool
	content int
}

var (
	plainNames = []string{"a", "b", "c", "d", "lib", "usr"}
	oddNames   = []string{
		"\xff\xfe", "latin-\xe9", "new\nline", "tab\t", "\x01\x7f", " ", "...", "..a", "a\\b", "wh.", ".w", ".whx", "é", "e\u0301",
		strings.Repeat("n", 255), strings.Repeat("\xf0", 120), "*?[", "\"'", "-", "A", "lost+found", "..\xc0\xaf",
	}
	instants = []time.Time{
		time.Unix(0, 0), time.Unix(0, 1), time.Unix(-1, 0), time.Unix(-1, 999_999_999), time.Unix(-1<<31, 0), time.Unix(-1<<40, 5), time.Unix(1<<31, 7),
		time.Unix(1<<32, 1), time.Unix(9_223_372_036, 854_775_807), time.Unix(9_223_372_036, 854_775_808), time.Unix(1<<35, 0),
		time.Unix(1_500_000_000, 123_456_789), time.Unix(1_500_000_000, 999_999_999), time.Unix(1<<40, 3),
	}
	ids   = []int64{0, 0, 1, 1000, 65_534, 65_535, 65_536, 1<<21 - 1, 1 << 21, 1<<31 - 1, 1 << 31, 1<<32 - 2}
	modes = []int64{0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777, 0o000, 0o600, 0o6711, 0o100644, 0o2000}
)

const (
	capability  = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capability3 = "\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
	aclMinimal  = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	aclExtended = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff"
)

func pick[T any](r *random, from []T) T { return from[r.IntN(len(from))] }

func (r *random) chance(percent int) bool { return r.IntN(100) < percent }

func (r *random) layer() []byte {
	r.base = r.below == nil
	if r.base {
		r.below, r.solid = map[string]byte{}, map[string]bool{}
	}
	for name, kind := range r.here {
		r.below[name] = kind
		r.solid[name] = r.solid[name] || kind != Dir
	}
	r.here = map[string]byte{}
	var out bytes.Buffer
	for range pick(r, []int{0, 3, 8, 15, 30}) {
		entry := r.entry()
		if r.chance(3) {
			Entry{Global: true, Pax: map[string]string{"comment": "none", "uid": "77", "mtime": "5.5"}}.write(&out)
		}
		entry.write(&out)
	}
	switch r.IntN(6) {
	case 0: // no end at all
	case 1:
		out.Write(make([]byte, 512))
	case 2:
		out.Write(make([]byte, 1024))
		out.WriteString("what follows the end is of no meaning")
	default:
		out.Write(make([]byte, 10240))
	}
	return out.Bytes()
}

func (r *random) name() string {
	if r.chance(12) {
		return pick(r, oddNames)
	}
	return pick(r, plainNames)
}

// dir is a directory for an entry, mostly one that is there.
func (r *random) dir() string {
	var dirs []string
	for _, from := range []map[string]byte{r.here, r.below} {
		dirs = append(dirs, where(from, func(name string, kind byte) bool { return kind == Dir && r.free(name) })...)
	}
	links := where(r.here, func(_ string, kind byte) bool { return kind == Symlink })
	switch {
	case r.chance(20):
		return ""
	case r.chance(4) && len(links) > 0:
		return path.Join(pick(r, links), pick(r, []string{"", "", r.name(), ".."}))
	case r.chance(70) && len(dirs) > 0:
		return pick(r, dirs)
	case r.chance(95):
		dir := path.Join(r.name(), r.name())
		if r.free(dir) {
			return dir
		}
		return ""
	case r.chance(3):
		return r.name()
	default:
		return ""
	}
}

// free tells whether nothing of this layer stands on the way to a name.
func (r *random) free(name string) bool {
	for ; name != "." && name != ""; name = path.Dir(name) {
		kind, made := r.here[name]
		if made && kind != Dir || r.solid[name] && !r.chance(1) {
			return false
		}
	}
	return true
}

func (r *random) spell(name string) string {
	switch r.IntN(14) {
	case 0:
		return "./" + name
	case 1:
		return "/" + name
	case 2:
		return strings.ReplaceAll(name, "/", "//")
	case 3:
		return strings.ReplaceAll(name, "/", "/./")
	case 4:
		return "zz/../" + name
	case 5:
		return name + "/"
	default:
		return name
	}
}

func (r *random) entry() Entry {
	name := path.Join(r.dir(), r.name())
	entry := Entry{Name: name}
	r.dress(&entry)
	switch n := r.IntN(100); {
	case n < 30:
		r.file(&entry)
	case n < 50:
		entry.Type = Dir
		r.dress(&entry)
	case n < 60:
		entry.Type, entry.Link, entry.Mode = Symlink, r.target(), 0o777
	case n < 70:
		entry.Type = Fifo
		if target := r.linkTarget(); target != "" {
			entry.Type, entry.Link = Hard, r.spellTarget(target)
		}
	case n < 80:
		return r.whiteout(entry)
	case n < 85:
		if r.base && r.chance(80) {
			return r.entry()
		}
		entry.Name = path.Join(r.dir(), pick(r, []string{".wh..wh..opq", ".wh..wh..opq", ".wh..wh..opq/", ".wh..wh..opq/./"}))
		return entry
	case n < 94:
		r.device(&entry)
	case n < 96:
		entry.Name, entry.Type = pick(r, []string{"./", ".", "/", "//", "a/.."}), Dir
		return entry
	default:
		r.long(&entry)
		return entry
	}
	if entry.Type != Dir && r.here[name] == Dir && r.chance(97) {
		// A directory that another entry replaces: containerd sets its time in the end all the same, and fails.
		entry = Entry{Name: name, Type: Dir}
	}
	r.note(name, entry.Type)
	entry.Name = r.spell(name)
	if entry.Type == Dir && r.chance(60) {
		entry.Name += "/"
	}
	return entry
}

func (r *random) note(name string, kind byte) {
	if kind == 0 {
		kind = File
	}
	if !r.free(path.Dir(name)) {
		return
	}
	if kind != Dir {
		for other := range r.here {
			if strings.HasPrefix(other, name+"/") {
				delete(r.here, other)
			}
		}
	}
	r.here[name] = kind
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		r.here[dir] = Dir
	}
}

func (r *random) file(entry *Entry) {
	size := pick(r, []int{0, 1, 5, 511, 512, 513, 4096, 5000})
	if r.chance(4) {
		size = 1 << (18 + r.IntN(5)) // more than one span of an index
	}
	entry.Body = make([]byte, size)
	for i := range entry.Body {
		r.content++
		entry.Body[i] = byte(r.content * 2_654_435_761 >> (16 + i>>17))
	}
	switch r.IntN(20) {
	case 0:
		r.sparse(entry)
	case 1:
		size := int64(len(entry.Body)) + 1
		entry.Size = &size
		entry.Pax["size"] = fmt.Sprint(len(entry.Body))
	case 2:
		entry.V7, entry.Type = true, 0
	case 3:
		entry.Binary = true
	}
}

// dress gives an entry its attributes.
func (r *random) dress(entry *Entry) {
	entry.Pax = map[string]string{}
	entry.Mode, entry.UID, entry.GID = pick(r, modes), pick(r, ids), pick(r, ids)
	if r.chance(50) {
		entry.Time = pick(r, instants)
	}
	if r.chance(10) {
		entry.GNU = true
	}
	if r.chance(5) {
		entry.Binary = true
	}
	if r.chance(5) {
		entry.Pax["uid"], entry.Pax["gid"] = fmt.Sprint(pick(r, ids)), fmt.Sprint(pick(r, ids))
	}
	if r.chance(4) {
		entry.Pax["mtime"] = pick(r, []string{"-0.5", "1234.5", "1234.1234567899", "0", "-1.000000001", "99999999999", "12.", "+5", "007"})
		entry.Pax["atime"] = "5000000000.5"
	}
	if r.chance(3) {
		entry.Pax["uname"], entry.Pax["comment"] = "root", "x"
	}
	attribute := func(key, value string) { entry.Pax["SCHILY.xattr."+key] = value }
	if r.chance(15) {
		attribute(pick(r, []string{"user.a", "user.b", "user.\xff", "user.with=x", "security.x", "trusted.overlay.opaque", "trusted.x", "trusted.overlay.redirect",
			"user.overlay.opaque", "system.x", "security.selinux", "other.x", "user." + strings.Repeat("k", 200)}),
			pick(r, []string{"", "y", "\x00\xff\n=", strings.Repeat("v", 900)}))
	}
	if strings.Contains(strings.Join(sorted(entry.Pax), ""), "=") {
		clear(entry.Pax)
	}
	if r.chance(5) {
		attribute("security.capability", pick(r, []string{capability, capability3}))
	}
	if r.chance(5) {
		attribute("system.posix_acl_access", pick(r, []string{aclMinimal, aclExtended}))
	}
	if entry.Type == Dir && r.chance(10) {
		attribute("system.posix_acl_default", pick(r, []string{aclMinimal, aclExtended, "", "\x02\x00\x00\x00"}))
	}
}

func (r *random) target() string {
	return pick(r, []string{
		r.name(), "/" + r.name(), "../" + r.name(), r.name() + "/" + r.name(), "/usr/lib", "usr/lib", "nowhere", ".", "/", "..", "../../../../etc",
		"./" + r.name() + "/../" + r.name(), "a/", "//a", strings.Repeat("t", 300), "\xff\n",
	})
}

func (r *random) linkTarget() string {
	targets := where(r.here, func(_ string, kind byte) bool { return kind != Dir && (kind != 'w' || r.chance(1)) })
	if len(targets) > 0 && r.chance(99) {
		return pick(r, targets)
	}
	if r.chance(10) {
		return r.name()
	}
	return ""
}

func (r *random) spellTarget(name string) string {
	switch r.IntN(8) {
	case 0:
		return "/" + name
	case 1:
		return "./" + name
	case 2:
		return "zz/../" + name
	default:
		return name
	}
}

func (r *random) whiteout(entry Entry) Entry {
	name := entry.Name
	if _, made := r.here[name]; made && r.chance(98) {
		name = path.Join(path.Dir(name), r.name()+".gone")
	}
	if below := sorted(r.below); len(below) > 0 && r.chance(60) {
		if candidate := pick(r, below); r.free(candidate) && r.here[candidate] == 0 {
			name = candidate
		}
	}
	if r.chance(4) {
		name = path.Join(path.Dir(name), pick(r, []string{".wh.plnk", ".wh.aufs", ".wh.x"}))
	}
	base := path.Base(name)
	if len(base) > 251 {
		base = base[:251]
	}
	entry.Name = path.Join(path.Dir(name), ".wh."+base)
	r.note(path.Join(path.Dir(name), base), 'w')
	if r.chance(10) {
		entry.Type = pick(r, []byte{Dir, Symlink, Char})
		entry.Link = "x"
	}
	return entry
}

func (r *random) device(entry *Entry) {
	entry.Type = pick(r, []byte{Char, Block, Fifo})
	entry.Major, entry.Minor = pick(r, []int64{0, 1, 8, 4095}), pick(r, []int64{0, 3, 255, 256, 1<<20 - 1})
	if entry.Type != Fifo && r.chance(20) {
		entry.Major, entry.Minor = 4096, 1<<20
	}
	if r.chance(10) {
		size := int64(600)
		entry.Size = &size
	}
}

func (r *random) long(entry *Entry) {
	entry.Pax = nil
	dir := fmt.Sprintf("L%d/", r.IntN(3))
	switch r.IntN(4) {
	case 0:
		entry.Name, entry.GNU = dir+strings.Repeat("g", 200), true
	case 1:
		entry.Name = dir + Long(pick(r, []int{1000, 3000, 3900}))
	case 2:
		entry.Name, entry.Prefix = "leaf", dir+"prefix"
	case 3:
		entry.Name, entry.Type, entry.Link, entry.GNU = dir+"far", Symlink, Long(3000), true
	}
}

func (r *random) sparse(entry *Entry) {
	data := bytes.Repeat([]byte("data"), 256)
	first, size := pick(r, []int{0, 100, 512, 4096, 5000}), 20_000
	last := size - 512 - pick(r, []int{0, 32, 600})
	runs := []int{first, 512, last, 512}
	name := entry.Name
	switch r.IntN(3) {
	case 0:
		text := fmt.Sprintf("2\n%d\n%d\n%d\n%d\n", first, 512, last, 512)
		entry.Body = append(append([]byte(text), make([]byte, 512-len(text))...), data...)
		entry.Pax["GNU.sparse.major"], entry.Pax["GNU.sparse.minor"] = "1", "0"
		entry.Pax["GNU.sparse.name"], entry.Pax["GNU.sparse.realsize"] = name, fmt.Sprint(size)
	case 1:
		entry.Body = data
		entry.Pax["GNU.sparse.numblocks"], entry.Pax["GNU.sparse.map"] = "2", strings.Trim(strings.ReplaceAll(fmt.Sprint(runs), " ", ","), "[]")
		entry.Pax["GNU.sparse.name"], entry.Pax["GNU.sparse.size"] = name, fmt.Sprint(size)
	case 2:
		entry.Body = data
		entry.Pax["GNU.sparse.major"], entry.Pax["GNU.sparse.minor"] = "0", "1"
		entry.Pax["GNU.sparse.numblocks"], entry.Pax["GNU.sparse.map"] = "2", strings.Trim(strings.ReplaceAll(fmt.Sprint(runs), " ", ","), "[]")
		entry.Pax["GNU.sparse.realsize"] = fmt.Sprint(size)
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// where are the names that want takes, asked in their order.
func where(names map[string]byte, want func(name string, kind byte) bool) []string {
	return slices.DeleteFunc(sorted(names), func(name string) bool { return !want(name, names[name]) })
}

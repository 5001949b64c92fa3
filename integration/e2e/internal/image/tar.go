// Package image builds container images for tests, layer by layer, down to the bytes of a tar header.
package image

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of tar entries, as POSIX and GNU tar name them.
const (
	File    = '0'
	Hard    = '1'
	Symlink = '2'
	Char    = '3'
	Block   = '4'
	Dir     = '5'
	Fifo    = '6'
)

// Entry is one member of a tar. The zero Type is a file; a zero Mode is 0644, for directories 0755; a zero Time is Epoch.
type Entry struct {
	Name, Link   string
	Type         byte
	Mode         int64
	UID, GID     int64
	Time         time.Time
	Body         []byte
	Major, Minor int64
	// Pax holds further records, such as SCHILY.xattr.user.name.
	Pax map[string]string
	// Size overrides the header's size field: for tars that lie.
	Size *int64
	// Global makes a pax global header of Pax, and nothing else.
	Global bool
	// GNU writes long names as GNU tar does (types L and K) and not as pax records.
	GNU bool
	// V7 leaves the magic away, as tars did before POSIX.
	V7 bool
	// Prefix is what stands in front of a ustar name.
	Prefix string
	// Binary writes all numbers in base 256.
	Binary bool
	// Sparse holds offsets and lengths of an old GNU sparse file (type S, at most four runs), RealSize its size.
	Sparse   []int
	RealSize int64
}

// Epoch is the modification time of entries that name none.
var Epoch = time.Unix(1_600_000_000, 0)

// WriteTar makes a tar of the entries with the two zero blocks at its end.
func WriteTar(entries ...Entry) []byte {
	var out bytes.Buffer
	for _, entry := range entries {
		entry.write(&out)
	}
	out.Write(make([]byte, 1024))
	return out.Bytes()
}

func (e Entry) write(out *bytes.Buffer) {
	if e.Global {
		writeMember(out, Entry{Name: "pax_global_header", Type: 'g', Mode: 0o644, Body: paxRecords(e.Pax), Time: Epoch})
		return
	}
	if e.Type == 0 {
		e.Type = File
	}
	if e.Mode == 0 {
		e.Mode = 0o644
		if e.Type == Dir {
			e.Mode = 0o755
		}
	}
	if e.Time.IsZero() {
		e.Time = Epoch
	}
	records := maps.Clone(e.Pax)
	if records == nil {
		records = map[string]string{}
	}
	if e.GNU {
		e.writeLong(out, 'L', e.Name)
		e.writeLong(out, 'K', e.Link)
	} else {
		addLong(records, "path", e.Name)
		addLong(records, "linkpath", e.Link)
	}
	if e.Time.Unix() < 0 || e.Time.Nanosecond() != 0 {
		records["mtime"] = paxTime(e.Time)
	}
	if len(records) > 0 {
		writeMember(out, Entry{Name: "PaxHeaders/entry", Type: 'x', Mode: 0o644, Body: paxRecords(records), Time: Epoch})
	}
	writeMember(out, e)
}

func (e Entry) writeLong(out *bytes.Buffer, kind byte, value string) {
	if len(value) > 100 {
		writeMember(out, Entry{Name: "././@LongLink", Type: kind, Mode: 0o644, Body: append([]byte(value), 0), Time: time.Unix(0, 0)})
	}
}

func addLong(records map[string]string, key, value string) {
	if _, set := records[key]; !set && len(value) > 100 {
		records[key] = value
	}
}

// paxTime writes seconds and nanoseconds; -1.5 is one and a half seconds before 1970.
func paxTime(t time.Time) string {
	seconds, nanos := t.Unix(), int64(t.Nanosecond())
	if seconds < 0 && nanos > 0 {
		return fmt.Sprintf("-%d.%09d", -(seconds + 1), 1_000_000_000-nanos)
	}
	return fmt.Sprintf("%d.%09d", seconds, nanos)
}

// paxRecords writes "LENGTH KEY=VALUE\n" lines; the length counts its own digits.
func paxRecords(records map[string]string) []byte {
	var out bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(records)) {
		rest := " " + key + "=" + records[key] + "\n"
		length := len(rest)
		for length != len(rest)+len(strconv.Itoa(length)) {
			length = len(rest) + len(strconv.Itoa(length))
		}
		out.WriteString(strconv.Itoa(length) + rest)
	}
	return out.Bytes()
}

// writeMember writes one header and its body, as they stand.
func writeMember(out *bytes.Buffer, e Entry) {
	header := make([]byte, 512)
	copy(header[0:100], e.Name)
	octal := octal
	if e.Binary {
		octal = base256
	}
	octal(header[100:108], e.Mode)
	octal(header[108:116], int64(e.UID))
	octal(header[116:124], int64(e.GID))
	size := int64(len(e.Body))
	if e.Size != nil {
		size = *e.Size
	}
	octal(header[124:136], size)
	octal(header[136:148], max(e.Time.Unix(), 0))
	header[156] = e.Type
	copy(header[157:257], e.Link)
	copy(header[257:265], "ustar\x0000")
	if e.GNU || e.Type == 'L' || e.Type == 'K' {
		copy(header[257:265], "ustar  \x00")
	}
	copy(header[345:500], e.Prefix)
	if e.V7 {
		clear(header[257:345])
	} else {
		octal(header[329:337], e.Major)
		octal(header[337:345], e.Minor)
	}
	for i, number := range e.Sparse {
		octal(header[386+12*i:398+12*i], int64(number))
	}
	if e.Sparse != nil {
		octal(header[483:495], e.RealSize)
	}
	copy(header[148:156], "        ")
	var sum int64
	for _, b := range header {
		sum += int64(b)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	out.Write(header)
	out.Write(e.Body)
	out.Write(make([]byte, (512-len(e.Body)%512)%512))
}

// octal writes a number with a NUL behind it, or in base 256 (GNU) where that is too short.
func octal(field []byte, value int64) {
	if text := fmt.Sprintf("%0*o", len(field)-1, value); value >= 0 && len(text) < len(field) {
		copy(field, text)
		return
	}
	base256(field, value)
}

// base256 writes a number in base 256, as GNU tar does.
func base256(field []byte, value int64) {
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(value)
		value >>= 8
	}
	field[0] |= 0x80
}

// TimesMadeUp names the directories whose modification time no layer tells: those that the topmost layer with a part in them only
// implies, those that AUFS kept for itself, and the root ("."), whose entry containerd passes over. containerd gives them the time of
// the unpacking.
func TimesMadeUp(layers ...[]Entry) map[string]bool {
	madeUp := map[string]bool{}
	for _, entries := range layers {
		declared := map[string]bool{}
		for _, entry := range entries {
			name := path.Clean("./" + entry.Name)
			if entry.Type == Dir && !strings.HasPrefix(path.Base(name), ".wh..wh.") {
				declared[name] = true
			}
		}
		for _, entry := range entries {
			if entry.Global {
				continue
			}
			for dir := path.Dir(path.Clean("./" + entry.Name)); dir != "."; dir = path.Dir(dir) {
				madeUp[dir] = !declared[dir]
			}
		}
		for dir := range declared {
			delete(madeUp, dir)
		}
	}
	madeUp["."] = true
	return madeUp
}

// Long makes a path of the given length out of names of at most 255 bytes.
func Long(length int) string {
	var parts []string
	for length > 0 {
		part := min(length, 255)
		if length-part == 1 {
			part--
		}
		parts = append(parts, strings.Repeat("n", part))
		length -= part + 1
	}
	return strings.Join(parts, "/")
}

package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"
)

// Sizes of the chart, in pixels: the names on the left, the bars, room for a bar's figures on the right.
const (
	chartNames, chartBars, chartRight = 190, 620, 90
	barHeight, barStep, groupGap      = 13, 17, 34
)

// Colours of columns, readable on white and on black, and told apart by who does not see red or green.
var palette = []string{"#8c8c8c", "#b8a04a", "#b0603c", "#3b7dd8", "#1f5fa8", "#2a9d8f", "#7b52ab", "#4f3a8c", "#c2477f", "#5b8c3a"}

// chart draws, for each image and column, the time to the ready line as a bar, and to whole and proved as a thin line behind it.
func (r report) chart() string {
	var body strings.Builder
	longest := 0.0
	for _, f := range r.figures {
		longest = math.Max(longest, math.Max(f.Ready.Seconds(), f.Proved.Seconds()))
	}
	step := tick(longest)
	scale := chartBars / (math.Ceil(longest/step) * step)
	y := 24
	for _, s := range r.subjects {
		if !slices.ContainsFunc(r.figures, func(f figures) bool { return f.Image == s.name }) {
			continue
		}
		fmt.Fprintf(&body, `<text x="0" y="%d" font-weight="bold">%s, %.0f MB</text>`+"\n", y, html.EscapeString(s.name), float64(s.bytes)/1e6)
		top := y + 6
		y += 12
		for i, c := range r.columns {
			if all := r.of(s.name, c.name); len(all) > 0 {
				r.bar(&body, c.name, palette[i%len(palette)], y, scale, all)
				y += barStep
			}
		}
		if all := r.settings.network.All; all > 0 {
			x := chartNames + scale*float64(s.bytes)/float64(all)
			fmt.Fprintf(&body, `<path d="M%.1f %dV%d" stroke="#d33" stroke-dasharray="3 2"/>`+"\n", x, top, y-3)
		}
		y += groupGap
	}
	var axis strings.Builder
	for at := 0.0; at <= longest+step; at += step {
		x := chartNames + at*scale
		if x > chartNames+chartBars+1 {
			break
		}
		fmt.Fprintf(&axis, `<path d="M%.1f 14V%d" stroke="#8884"/><text x="%.1f" y="%d" text-anchor="middle">%g s</text>`+"\n", x, y-20, x, y-6, at)
	}
	note := "bar: ready; line: whole and proved"
	if r.settings.network.All > 0 {
		note += "; dashes: bytes / link"
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 %d %d" font-family="sans-serif" font-size="11" fill="#888">
<text x="%d" y="10">%s</text>
%s%s</svg>
`, chartNames+chartBars+chartRight+8, y+4, chartNames, note, axis.String(), body.String())
}

func (r report) bar(body *strings.Builder, name, colour string, y int, scale float64, all []figures) {
	ready := median(all, func(f figures) time.Duration { return f.Ready }).Seconds()
	proved := median(all, func(f figures) time.Duration { return f.Proved }).Seconds()
	fmt.Fprintf(body, `<text x="%d" y="%d" text-anchor="end">%s</text>`, chartNames-6, y+barHeight-3, html.EscapeString(name))
	fmt.Fprintf(body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, chartNames, y, ready*scale, barHeight, colour)
	fmt.Fprintf(body, `<path d="M%d %.1fH%.1f" stroke="%s" stroke-width="3"/>`, chartNames, float64(y)+barHeight/2.0, chartNames+proved*scale, colour)
	fmt.Fprintf(body, `<text x="%.1f" y="%d">%.2f</text>`+"\n", chartNames+math.Max(ready, proved)*scale+4, y+barHeight-3, ready)
}

// tick is a round number of seconds of which about eight make the whole.
func tick(longest float64) float64 {
	for _, step := range []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50} {
		if longest/step <= 10 {
			return step
		}
	}
	return 100
}

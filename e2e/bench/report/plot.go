// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// The plot's measures, in pixels.
const (
	panelWidth, panelHeight = 420, 340
	marginLeft, marginTop   = 64, 44
	gapBetween              = 84
	legendWidth             = 210
	plotWidth               = marginLeft + 2*panelWidth + gapBetween + legendWidth + 20
	plotHeight              = marginTop + panelHeight + 56
)

// series is a line of a panel.
type series struct {
	name   string
	colour string
	dashed bool
	points []xy
}

// xy is a number of Services, and what it costs, in milliseconds.
type xy struct{ x, y float64 }

// panel is a diagram with logarithmic axes.
type panel struct {
	title string
	value func(*Run) float64   // in ms
	floor func(*Floor) float64 // in ms
}

func panels() []panel {
	return []panel{
		{"first endpoint added → connect works, p50",
			func(r *Run) float64 { return r.AddedMS.at(50) },
			func(f *Floor) float64 { return f.AddedMS.at(50) }},
		{"first sync",
			func(r *Run) float64 { return of(r.FirstSync, func(f *FirstSync) float64 { return 1000 * f.S }) },
			func(f *Floor) float64 { return 1000 * f.FirstSyncS }},
	}
}

// Plot draws what one change and a first sync cost against the number of
// Services, for the sizes with the number of endpoints that most runs have. It
// is empty if there are not two sizes.
func (r *Results) Plot() string {
	endpoints := r.commonEndpoints()
	var runs []*Run
	sizes := map[int]bool{}
	for i := range r.Runs {
		if r.Runs[i].Endpoints == endpoints && r.Runs[i].Variant != IPVS && r.Runs[i].Variant != NFTables { // which have tables of their own
			runs = append(runs, &r.Runs[i])
			sizes[r.Runs[i].Services] = true
		}
	}
	if len(sizes) < 2 {
		return ""
	}
	slices.SortStableFunc(runs, func(a, b *Run) int { return a.Services - b.Services })
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i, p := range panels() {
		lines := p.series(runs)
		p.draw(&b, marginLeft+i*(panelWidth+gapBetween), lines, endpoints)
		if i == 0 {
			legend(&b, lines)
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// commonEndpoints is the number of endpoints that most runs have.
func (r *Results) commonEndpoints() int {
	count, best := map[int]int{}, 0
	for _, run := range r.Runs {
		count[run.Endpoints]++
		if n := count[run.Endpoints]; n > count[best] {
			best = run.Endpoints
		}
	}
	return best
}

// colours are those of the lines, by subject; each variant has its own shade.
func colours() [][2]string {
	return [][2]string{{"#0b61a4", "#62b1ea"}, {"#1a7f37", "#79c98c"}, {"#b42318", "#f08a7f"}, {"#6e40aa", "#b79be0"}, {"#8a6100", "#d9b14c"}}
}

// series returns the lines of runs that are sorted by size: one for each subject
// and variant, and one for its floor.
func (p panel) series(runs []*Run) []series {
	var out []series
	var subjects []string
	at := func(s series, x, y float64) {
		if math.IsNaN(y) || y <= 0 {
			return
		}
		i := slices.IndexFunc(out, func(o series) bool { return o.name == s.name })
		if i < 0 {
			i = len(out)
			out = append(out, s)
		}
		out[i].points = append(out[i].points, xy{x, y})
	}
	for _, r := range runs {
		if !slices.Contains(subjects, r.Subject) {
			subjects = append(subjects, r.Subject)
		}
		pair := colours()[slices.Index(subjects, r.Subject)%len(colours())]
		colour := pair[0]
		if r.Variant == "legacy" {
			colour = pair[1]
		}
		name := r.Subject + ", " + r.Variant
		at(series{name: name, colour: colour}, float64(r.Services), p.value(r))
		if r.Floor != nil {
			at(series{name: name + ": floor", colour: colour, dashed: true}, float64(r.Services), p.floor(r.Floor))
		}
	}
	slices.SortStableFunc(out, func(a, b series) int { return strings.Compare(a.name, b.name) })
	return out
}

// decades returns the powers of ten around some values.
func decades(values []float64) (low, high float64) {
	low = math.Floor(math.Log10(slices.Min(values)))
	return low, max(math.Ceil(math.Log10(slices.Max(values))), low+1)
}

// draw draws a panel whose left edge is at x0.
func (p panel) draw(b *strings.Builder, x0 int, lines []series, endpoints int) {
	var xs, ys []float64
	for _, l := range lines {
		for _, pt := range l.points {
			xs, ys = append(xs, pt.x), append(ys, pt.y)
		}
	}
	if len(xs) == 0 {
		return
	}
	xLow, xHigh := decades(xs)
	yLow, yHigh := decades(ys)
	px := func(x float64) float64 {
		return float64(x0) + (math.Log10(x)-xLow)/(xHigh-xLow)*panelWidth
	}
	py := func(y float64) float64 {
		return marginTop + panelHeight - (math.Log10(y)-yLow)/(yHigh-yLow)*panelHeight
	}
	for e := xLow; e <= xHigh; e++ {
		x := px(math.Pow(10, e))
		fmt.Fprintf(b, `<path d="M%.1f %d v%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%.0f</text>`+"\n",
			x, marginTop, panelHeight, x, marginTop+panelHeight+18, math.Pow(10, e))
	}
	for e := yLow; e <= yHigh; e++ {
		y := py(math.Pow(10, e))
		fmt.Fprintf(b, `<path d="M%d %.1f h%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			x0, y, panelWidth, x0-6, y+4, timeLabel(math.Pow(10, e)))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" font-size="14" font-weight="bold">%s</text>`+"\n", x0+panelWidth/2, marginTop-16, p.title)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">Services, %d endpoints each</text>`+"\n", x0+panelWidth/2, marginTop+panelHeight+40, endpoints)
	for _, l := range lines {
		l.draw(b, px, py)
	}
}

// draw draws a line and its points.
func (l series) draw(b *strings.Builder, px, py func(float64) float64) {
	var path []string
	for _, pt := range l.points {
		path = append(path, fmt.Sprintf("%.1f,%.1f", px(pt.x), py(pt.y)))
		if !l.dashed {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px(pt.x), py(pt.y), l.colour)
		}
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s><title>%s</title></polyline>`+"\n",
		strings.Join(path, " "), l.colour, l.dash(), l.name)
}

func (l series) dash() string {
	if l.dashed {
		return ` stroke-dasharray="4 4" stroke-opacity="0.8"`
	}
	return ""
}

// timeLabel writes milliseconds in the unit that suits them.
func timeLabel(ms float64) string {
	if ms >= 1000 {
		return fmt.Sprintf("%g s", ms/1000)
	}
	return fmt.Sprintf("%g ms", ms)
}

// legend names the lines beside the panels.
func legend(b *strings.Builder, lines []series) {
	x := marginLeft + 2*panelWidth + gapBetween + 20
	for i, l := range lines {
		y := marginTop + 10 + 20*i
		fmt.Fprintf(b, `<path d="M%d %d h28" stroke="%s" stroke-width="2"%s/><text x="%d" y="%d">%s</text>`+"\n", x, y, l.colour, l.dash(), x+36, y+4, l.name)
	}
}

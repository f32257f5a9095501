// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"fairlead/config"
)

// klogFlags returns klog's own flags, by which it is told things.
func klogFlags() *flag.FlagSet {
	fs := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(fs)
	return fs
}

// verbosityFlag defines the flag of a command that has no other settings.
func verbosityFlag(fs *pflag.FlagSet) {
	fs.AddFlag(pflag.PFlagFromGoFlag(klogFlags().Lookup("v")))
	fs.Lookup("v").Usage = "How much to log, 0 to 6."
}

// setLogging makes the log what settings say.
func setLogging(s *config.Settings) error {
	fs := klogFlags()
	if err := fs.Set("v", strconv.Itoa(s.Verbosity)); err != nil {
		return fmt.Errorf("%s: %w", s.Where("v"), err)
	}
	if err := fs.Set("vmodule", string(s.VModule)); err != nil {
		return fmt.Errorf("%s %q: %w", s.Where("vmodule"), s.VModule, err)
	}
	if s.LogFormat == config.LogJSON {
		klog.SetSlogLogger(slog.New(jsonHandler(os.Stderr)))
	}
	return nil
}

// setVerbosity makes the log have more or less, from now on.
func setVerbosity(level string) error { return klogFlags().Set("v", level) }

// jsonHandler writes a line of JSON for each record, with the keys that Kubernetes'
// components have: ts in milliseconds, caller, msg, and v, which errors do not have.
func jsonHandler(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{
		AddSource: true,
		Level:     klogLevel{},
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) > 0 {
				return a
			}
			switch a.Key {
			case slog.TimeKey:
				return slog.Float64("ts", float64(a.Value.Time().UnixMicro())/1000)
			case slog.LevelKey:
				level, _ := a.Value.Any().(slog.Level)
				if level >= slog.LevelError {
					return slog.Attr{}
				}
				return slog.Int("v", -int(level))
			case slog.SourceKey:
				if src, ok := a.Value.Any().(*slog.Source); ok {
					return slog.String("caller", filepath.Base(src.File)+":"+strconv.Itoa(src.Line))
				}
			}
			return a
		},
	})
}

// klogLevel is the least level to log, by klog's verbosity as it is now. To slog, V(2)
// is the level -2.
type klogLevel struct{}

// Level implements slog.Leveler.
func (klogLevel) Level() slog.Level {
	for v := klog.Level(10); v > 0; v-- {
		if klog.V(v).Enabled() {
			return slog.Level(-v)
		}
	}
	return slog.LevelInfo
}

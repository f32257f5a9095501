// SPDX-License-Identifier: Apache-2.0

package config

import "strings"

// dead is a flag or field of kube-proxy's, of today or of earlier, that means nothing
// here. It is accepted, with a warning if it says something.
type dead struct {
	flags, fields []string
	// bool is set for flags that need no value.
	bool bool
	// usual are kube-proxy's defaults, which say nothing.
	usual []string
	why   string
}

const (
	whyRelist  = "a watch tells all changes, and nothing is delivered again"
	whyLogFile = "logs go to stderr"
	whyWindows = "it is for Windows"
	whyGone    = "kube-proxy does not have it any more either"
)

// deads are all of them.
func deads() []dead {
	return []dead{
		{flags: []string{"config-sync-period"}, fields: []string{"configSyncPeriod"}, usual: []string{"15m", "15m0s"}, why: whyRelist},
		{flags: []string{"show-hidden-metrics-for-version"}, fields: []string{"showHiddenMetricsForVersion"}, why: "no metric is hidden"},
		{fields: []string{"clientConnection.acceptContentTypes"}, why: "what is asked for is clientConnection.contentType, and JSON"},
		{flags: []string{"proxy-port-range"}, fields: []string{"portRange"}, why: "it was for the userspace mode"},
		{fields: []string{"winkernel", "windowsRunAsService"}, why: whyWindows},
		{flags: []string{"log-flush-frequency"}, fields: []string{"logging.flushFrequency"}, usual: []string{"5s", "5000000000"}, why: "logs are not buffered"},
		{flags: []string{"log-json-info-buffer-size", "log-text-info-buffer-size"}, why: "logs are not buffered"},
		{flags: []string{"log-json-split-stream", "log-text-split-stream"}, bool: true, fields: []string{"logging.options"}, why: whyLogFile},
		{flags: []string{"log-backtrace-at", "log-dir", "log-file", "log-file-max-size", "stderrthreshold"}, why: whyLogFile},
		{flags: []string{"add-dir-header", "alsologtostderr", "logtostderr", "one-output", "skip-headers", "skip-log-headers"}, bool: true, why: whyLogFile},
		{flags: []string{"boot-id-file", "machine-id-file"}, why: "nobody asks"},
		{flags: []string{"conntrack-max", "google-json-key", "resource-container", "udp-timeout"}, why: whyGone},
		{flags: []string{"cleanup-iptables", "cleanup-ipvs"}, bool: true, why: whyGone},
		{fields: []string{"conntrack.max", "resourceContainer", "udpIdleTimeout", "ipvs.masqueradeAll"}, why: whyGone},
	}
}

// deadField returns what a field, or the section that it is in, is where it has no
// effect.
func deadField(path string) (dead, bool) {
	for _, d := range deads() {
		for _, f := range d.fields {
			if path == f || strings.HasPrefix(path, f+".") {
				return d, true
			}
		}
	}
	return dead{}, false
}

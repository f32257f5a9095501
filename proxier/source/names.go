// SPDX-License-Identifier: Apache-2.0

package source

// Bounds of names in the Kubernetes API, in bytes.
const (
	maxLabel     = 63
	maxSubdomain = 253
)

// Reasons for which a name is refused.
const (
	reasonLabel      = "is not a DNS-1123 label (1 to 63 of a-z, 0-9, '-', none of them '-' at either end)"
	reasonSubdomain  = "is not a DNS-1123 subdomain (1 to 253 of a-z, 0-9, '-', '.', each part with a letter or digit at either end)"
	reasonLabelValue = "is not a label's value (1 to 63 of a-z, A-Z, 0-9, '-', '_', '.', a letter or digit at either end)"
)

// isLabel reports whether s is a DNS-1123 label. Namespaces and port names are,
// and so are the names of Services in their wider form.
func isLabel(s string) bool {
	return len(s) <= maxLabel && isNamePart(s)
}

// isSubdomain reports whether s is a DNS-1123 subdomain, as the names of
// EndpointSlices and Nodes are. The API bounds the whole, not the parts.
func isSubdomain(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	start := 0
	for i := range len(s) {
		if s[i] == '.' {
			if !isNamePart(s[start:i]) {
				return false
			}
			start = i + 1
		}
	}
	return isNamePart(s[start:])
}

func isNamePart(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isLabelValue reports whether s is a value that a label can have, the empty
// one apart. The names of zones are.
func isLabelValue(s string) bool {
	if s == "" || len(s) > maxLabel || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

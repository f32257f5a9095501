// SPDX-License-Identifier: Apache-2.0

// Package e2e has the end-to-end tests: the real binary on nodes made of
// network namespaces, real packets, a real API server.
//
// The tests whose names begin with TestKernel need root and say why they skip
// without it. Everything they make lies inside namespaces of their own.
package e2e

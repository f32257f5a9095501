// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// credentials let the API server prove who it is, and clients who they are.
// Those that the API server reads are files, named relative to its directory.
type credentials struct {
	// token makes a client a member of system:masters.
	token string
	// caPEM signed the server's certificate.
	caPEM []byte
}

const (
	tokenFile             = "tokens.csv"
	serverCertFile        = "server.crt"
	serverKeyFile         = "server.key"
	serviceAccountKeyFile = "service-account.key"
)

// newCredentials makes new credentials and writes their files to dir.
func newCredentials(dir string, cfg Config) (credentials, error) {
	c := credentials{token: rand.Text()}
	files := map[string][]byte{tokenFile: []byte(c.token + ",admin,admin,system:masters\n")}
	var err error
	if _, files[serviceAccountKeyFile], err = newKey(); err != nil {
		return c, fmt.Errorf("make key of service accounts: %w", err)
	}
	c.caPEM, files[serverCertFile], files[serverKeyFile], err = newServerCert(cfg)
	if err != nil {
		return c, fmt.Errorf("make certificate of the API server: %w", err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return c, fmt.Errorf("write credentials of the API server: %w", err)
		}
	}
	return c, nil
}

// newKey returns a new private key, also in PEM.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// newServerCert returns a certificate for every name and address that clients
// use, its key, and that of the authority which signed it, all in PEM.
func newServerCert(cfg Config) (ca, cert, key []byte, err error) {
	now := time.Now()
	caKey, _, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	caCert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caCert, caCert, caKey.Public(), caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	serverKey, key, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: caCert.NotBefore, NotAfter: caCert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: serverIPs(cfg),
	}, caCert, serverKey.Public(), caKey)
	return certPEM(caDER), certPEM(der), key, err
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serverIPs returns the addresses that clients reach the API server at. The
// Service default/kubernetes has the first of a range.
func serverIPs(cfg Config) []net.IP {
	addrs := slices.Concat([]netip.Addr{cfg.Address}, cfg.AlsoReachableAt)
	for _, cidr := range cfg.ServiceCIDRs {
		addrs = append(addrs, cidr.Masked().Addr().Next())
	}
	// The API server connects to itself.
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range addrs {
		ips = append(ips, a.AsSlice())
	}
	return ips
}

// restConfig returns the configuration of a client of the API server at url.
func (c credentials) restConfig(url string, dial func(context.Context, string, string) (net.Conn, error)) *rest.Config {
	return &rest.Config{
		Host:            url,
		BearerToken:     c.token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.caPEM},
		Dial:            dial,
		QPS:             -1,
	}
}

// WriteKubeconfig writes a kubeconfig file for a member of system:masters who
// reaches the API server at addr, which is Config.Address or one of
// Config.AlsoReachableAt.
func (c *Cluster) WriteKubeconfig(file string, addr netip.Addr) error {
	const name = "e2e"
	config := api.NewConfig()
	config.Clusters[name] = &api.Cluster{Server: c.url(addr), CertificateAuthorityData: c.creds.caPEM}
	config.AuthInfos[name] = &api.AuthInfo{Token: c.creds.token}
	config.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

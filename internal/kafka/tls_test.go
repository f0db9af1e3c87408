package kafka_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/playhead-dev/playhead/internal/kafka"
)

// selfSigned writes a certificate for "kafka.test", usable by both sides, and its key.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kafka.test"}, DNSNames: []string{"kafka.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", keyDER)
}

func TestTLS(t *testing.T) {
	certFile, keyFile := selfSigned(t)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	pemBytes, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(pemBytes)
	_, c := startFake(t, 1, 1, kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}))
	c.RetryTimeout = time.Second
	c.TLS = kafka.TLSConfig{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile, ServerName: "kafka.test"}
	ensure(t, c)
	openLog(t, c)

	refused := func(what string, s kafka.TLSConfig) {
		t.Helper()
		bad := c
		bad.TLS = s
		if l, err := kafka.OpenLog(t.Context(), bad); err == nil {
			l.Close()
			t.Errorf("%s: OpenLog succeeded", what)
		}
	}
	refused("another name", kafka.TLSConfig{Enabled: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile, ServerName: "other.test"})
	refused("an authority nobody trusts", kafka.TLSConfig{Enabled: true, CertFile: certFile, KeyFile: keyFile, ServerName: "kafka.test"})
	refused("a missing file", kafka.TLSConfig{Enabled: true, CAFile: certFile + ".not"})
	refused("a key in place of a certificate", kafka.TLSConfig{Enabled: true, CAFile: keyFile})

	c.TLS = kafka.TLSConfig{Enabled: true, CertFile: certFile, KeyFile: keyFile, InsecureSkipVerify: true}
	openLog(t, c)
}

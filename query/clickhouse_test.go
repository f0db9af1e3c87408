package query

import (
	"net"
	"strings"
	"testing"
	"time"
)

func TestClickHouseConfigReportsEveryProblem(t *testing.T) {
	c := ClickHouseConfig{
		DSN: "tcp://user:secret@host/db", TLS: ClickHouseTLS{CertFile: "a"},
		MaxIdleConns: 3, DialTimeout: -1, ReadTimeout: 2 * time.Hour,
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("Validate() = nil")
	}
	for _, want := range []string{
		"clickhouse.dsn must begin with", "clickhouse.tls.cert_file", "clickhouse.max_open_conns is 0", "clickhouse.max_idle_conns is 3",
		"clickhouse.dial_timeout is -1ns", "clickhouse.read_timeout is 2h0m0s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %q; want it to name %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("Validate() shows the password: %q", err)
	}
}

func TestClickHouseOptionsOfADSN(t *testing.T) {
	f := func(dsn string, change func(*ClickHouseConfig), wantTLS bool, wantAddr string) {
		t.Helper()
		c := DefaultClickHouseConfig()
		c.DSN = dsn
		if change != nil {
			change(&c)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("Validate(%q) = %v", dsn, err)
			return
		}
		opts, err := c.options()
		if err != nil {
			t.Errorf("options(%q): %v", dsn, err)
			return
		}
		if (opts.TLS != nil) != wantTLS || opts.Addr[0] != wantAddr || opts.Auth.Database != "db" || opts.Settings["async_insert"] != 0 {
			t.Errorf("options(%q) = TLS %v, address %v, database %q, settings %v; want TLS %v, %s, db, async_insert 0",
				dsn, opts.TLS != nil, opts.Addr, opts.Auth.Database, opts.Settings, wantTLS, wantAddr)
		}
	}
	f("http://u:p@host:8123/db", nil, false, "host:8123")
	f("https://host:8443/db", nil, true, "host:8443")
	f("https://host:8443/db?skip_verify=true", nil, true, "host:8443")
	f("clickhouse://host:9000/db?async_insert=1", nil, false, "host:9000")
	f("clickhouse://host:9440/db", func(c *ClickHouseConfig) { c.TLS.Enabled = true; c.TLS.ServerName = "ch" }, true, "host:9440")
	f("clickhouse://host:9440/db?secure=true", nil, true, "host:9440")
}

// 1. ClickHouse is away when the process starts; 2. opening succeeds, so that the process
// can start; 3. each call fails by itself.
func TestOpenDoesNotNeedTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := DefaultClickHouseConfig()
	c.DSN = "http://" + addr + "/db"
	conn, err := Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("Ping() of a server that is away = nil")
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

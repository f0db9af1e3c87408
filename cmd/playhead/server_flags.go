package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// defaultServerURL is where playhead dev listens unless told otherwise.
const defaultServerURL = "http://127.0.0.1:8080"

// serverFlags say which server a command speaks to over HTTP, and with which key.
type serverFlags struct {
	url     string // "" if not given
	key     string // likewise
	dataDir string
}

// register adds the flags. scope is what the key needs.
func (o *serverFlags) register(flags *flag.FlagSet, env func(string) string, scope string) {
	stringVar(flags, &o.url, "url", env("PLAYHEAD_URL"), "`address` of the server (PLAYHEAD_URL); default from dev.json, else "+defaultServerURL)
	flags.StringVar(&o.key, "key", "", "API key with the scope "+scope+"; prefer PLAYHEAD_KEY, which other users cannot see;\nelse PLAYHEAD_DEV_KEY, else from dev.json")
	flags.StringVar(&o.dataDir, "data-dir", firstOf(env("PLAYHEAD_DATA_DIR"), defaultDataDir), "`folder` of playhead dev, where dev.json is (PLAYHEAD_DATA_DIR)")
}

// choose decides which server is meant, and with which key. The key that `playhead dev` keeps in
// dev.json goes to the server that dev.json names, and to no other.
func (o *serverFlags) choose(env func(string) string) (url, key string, err error) {
	url = strings.TrimRight(o.url, "/")
	key = firstOf(o.key, env("PLAYHEAD_KEY"), env("PLAYHEAD_DEV_KEY"))
	if url != "" && key != "" {
		return url, key, nil
	}
	path := filepath.Join(o.dataDir, devStateFile)
	dev, err := readDevFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if key == "" {
			return "", "", fmt.Errorf("no API key: give --key or PLAYHEAD_KEY, or --data-dir if `playhead dev` runs with another one (there is no %s)", path)
		}
		return firstOf(url, defaultServerURL), key, nil
	}
	if err != nil {
		return "", "", err
	}
	devURL := strings.TrimRight(dev.URL, "/")
	if key == "" {
		if url != "" && url != devURL {
			return "", "", fmt.Errorf("no API key for %s: give --key or PLAYHEAD_KEY (the one in %s is for %s)", url, path, devURL)
		}
		key = dev.Key
	}
	return firstOf(url, devURL, defaultServerURL), key, nil
}

// Gitea with a driver of SQLite in Go: its own, up to v1.26, needs C, and this machine may have no compiler of it.
package main

import (
	"database/sql"
	"database/sql/driver"
	"net/url"
	"os"
	"strings"
	"time"

	"code.gitea.io/gitea/cmd"
	"code.gitea.io/gitea/modules/log"
	"code.gitea.io/gitea/modules/setting"
	"github.com/urfave/cli/v3"
	"modernc.org/sqlite"
)

// version is set by the linker.
var version = "development"

// translated opens a database with the options of this driver that stand for those of the other.
type translated struct{ driver sqlite.Driver }

func (t *translated) Open(name string) (driver.Conn, error) {
	path, query, _ := strings.Cut(name, "?")
	asked, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(20000)"}}
	if mode := asked.Get("_journal_mode"); mode != "" {
		options.Add("_pragma", "journal_mode("+mode+")")
		options.Add("_pragma", "synchronous(off)") // a test's database may be lost with the machine
	}
	return t.driver.Open(path + "?" + options.Encode())
}

func init() {
	sql.Register("sqlite3", &translated{})
	setting.EnableSQLite3 = true
	setting.SupportedDatabaseTypes = append(setting.SupportedDatabaseTypes, "sqlite3")
	setting.AppVer, setting.AppBuiltWith, setting.AppStartTime = version, " SQLite in Go", time.Now().UTC()
}

func main() {
	cli.OsExiter = func(code int) {
		log.GetManager().Close()
		os.Exit(code)
	}
	_ = cmd.RunMainApp(cmd.NewMainApp(cmd.AppVersion{Version: version, Extra: setting.AppBuiltWith}), os.Args...)
	log.GetManager().Close()
}

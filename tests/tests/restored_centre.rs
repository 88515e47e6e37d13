//! Yesterday's backup of the centre is put back: what was done since comes back from the buildings, to the fen, and nothing
//! is granted before all of them were heard.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use feiqian_tests::binaries::run_ok;
use feiqian_tests::kept::number;
use feiqian_tests::stand::{CENTRE, Plan, Stand, wait_for};

const CARD: &str = "card-1001";
const OTHER: &str = "card-1002";

fn two_buildings() -> Result<Stand> {
    Stand::start(Plan { buildings: vec!["canteen", "shop"], ..Plan::default() })
}

/// Copies a data directory, as a backup of a stopped centre does.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        if file.file_type()?.is_file() {
            std::fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Stops the centre for a backup and starts it again.
fn back_up(stand: &mut Stand) -> Result<()> {
    stand.settle()?;
    stand.centre.stop()?;
    copy(&stand.centre.data, &stand.path("backup"))?;
    stand.centre.start()?;
    links_up(stand)
}

fn links_up(stand: &mut Stand) -> Result<()> {
    wait_for("both in session", || {
        let mut up = true;
        for node in &mut stand.nodes {
            up &= !node.is_running()? || node.status()?["link"] == "up";
        }
        Ok(up)
    })
}

/// The centre's machine is lost, and the backup put in its place.
fn put_back(stand: &mut Stand) -> Result<()> {
    stand.centre.kill()?;
    std::fs::remove_dir_all(&stand.centre.data)?;
    copy(&stand.path("backup"), &stand.centre.data)
}

fn is_back(stand: &Stand) -> Result<bool> {
    let status = stand.centre.status()?;
    Ok(status["recovery"].is_null() && !status["recovered_until"].is_null())
}

#[test]
fn everything_converges_on_what_was_done_since_the_backup() -> Result<()> {
    let mut stand = two_buildings()?;
    let (canteen, shop) = (stand.till(0)?, stand.till(1)?);
    canteen.sell("before", CARD, 1_000)?;
    back_up(&mut stand)?;
    // A day goes on.
    canteen.sell("after", CARD, 700)?;
    shop.sell("after", CARD, 2_300)?;
    shop.hold("hold", OTHER, 40_000)?;
    stand.centre.run_ok(["topup", "--card", CARD, "--fen", "5000", "--channel", "bank", "--key", "k1"]);
    stand.centre.run_ok(["loss", "report", OTHER]);
    stand.settle()?;
    let expected = stand.balances()?;
    ensure!(expected[CARD] == 100_000 - 1_000 - 700 - 2_300 + 5_000, "{expected:?}");
    put_back(&mut stand)?;
    // Nobody is there, and a building sells all the same.
    ensure!(canteen.tap("alone", CARD, 900)?.approved_fen() == 900);
    stand.centre.start()?;
    wait_for("the centre to come back", || is_back(&stand)).with_context(|| stand.centre.log())?;
    ensure!(stand.centre.log().contains("restored copy of the centre"), "{}", stand.centre.log());
    ensure!(stand.nodes[0].log().contains("come back from an old copy"), "{}", stand.nodes[0].log());
    links_up(&mut stand)?;
    stand.settle()?;
    let balances = stand.balances()?;
    ensure!(balances[CARD] == expected[CARD] - 900 && balances[OTHER] == expected[OTHER], "{balances:?}");
    ensure!(
        shop.tap("lost", OTHER, 100)?.reason() == "lost",
        "a loss that was reported since is known again"
    );
    // A channel that is not sure submits again, under the same key.
    stand.centre.run_ok(["topup", "--card", CARD, "--fen", "5000", "--channel", "bank", "--key", "k1"]);
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == balances[CARD]);
    let text = stand.centre.run_ok(["status"]);
    ensure!(text.contains("submit credits again"), "{text}");
    // All of the money can be spent, once.
    shop.sell("all", CARD, balances[CARD])?;
    ensure!(canteen.tap("more", CARD, 1)?.outcome() == "declined");
    stand.settle()?;
    ensure!(stand.cases()?.is_empty(), "{:?}", stand.cases()?);
    // A start on the same file is a start like any other.
    stand.centre.stop()?;
    stand.centre.start()?;
    ensure!(stand.centre.status()?["recovery"].is_null());
    links_up(&mut stand)?;
    stand.finish()
}

/// Somebody pays 3.00 at the shop with a card that was reported lost while the shop could not hear of it, and the holder has it back.
fn refunded_at_the_shop(stand: &mut Stand) -> Result<()> {
    stand.till(1)?.hold("to-lose", OTHER, 1_000)?;
    stand.settle()?;
    stand.nodes[1].stop()?;
    stand.centre.run_ok(["loss", "report", OTHER]);
    stand.centre.stop()?;
    stand.nodes[1].start()?;
    stand.till(1)?.sell("found", OTHER, 300)?;
    stand.centre.start()?;
    links_up(stand)?;
    stand.settle()?;
    ensure!(stand.balances()?[OTHER] == 100_000, "{:?}", stand.balances()?);
    Ok(())
}

#[test]
fn a_building_that_is_out_of_reach_is_waited_for_until_it_is_given_up() -> Result<()> {
    let mut stand = two_buildings()?;
    let (canteen, shop) = (stand.till(0)?, stand.till(1)?);
    back_up(&mut stand)?;
    shop.sell("posted", CARD, 1_500)?;
    shop.hold("hold", CARD, 60_000)?;
    refunded_at_the_shop(&mut stand)?;
    stand.nodes[1].stop()?;
    put_back(&mut stand)?;
    stand.centre.start()?;
    wait_for("the canteen to be heard", || {
        Ok(stand.centre.status()?["recovery"]["heard"] == serde_json::json!(["canteen"]))
    })
    .with_context(|| stand.centre.log())?;
    let text = stand.centre.run_ok(["status"]);
    ensure!(text.contains("RESTORED FROM A BACKUP") && text.contains("waited for: shop"), "{text}");
    ensure!(
        canteen.tap("too-much", CARD, 90_000)?.outcome() == "declined",
        "what the shop holds is nobody else's"
    );
    let refused =
        stand.centre.run(["topup", "--card", CARD, "--fen", "100", "--channel", "bank", "--key", "k1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains("taking back what the buildings hold"),
        "{said}"
    );
    // A restart changes nothing of that.
    stand.centre.stop()?;
    stand.centre.start()?;
    ensure!(stand.centre.run_ok(["status"]).contains("waited for: shop"));
    let asked = stand.centre.run(["retire", "shop"]);
    ensure!(String::from_utf8_lossy(&asked.stderr).contains("--force"), "{asked:?}");
    stand.centre.run_ok(["retire", "shop", "--force"]);
    wait_for("the centre to come back", || is_back(&stand)).with_context(|| stand.centre.log())?;
    links_up(&mut stand)?;
    stand.settle()?;
    // What had been posted of the shop stays posted; its entries are not here, so suspense stands in for them.
    ensure!(stand.balances()?[CARD] == 100_000 - 1_500, "{:?}", stand.balances()?);
    ensure!(stand.balances()?[OTHER] == 100_000, "{:?}", stand.balances()?);
    let suspense = stand.export("postings")?;
    let suspense: i64 = suspense
        .iter()
        .filter(|line| line["ledger"] == "suspense")
        .map(|line| number(line, "amount_fen"))
        .sum();
    ensure!(suspense == 1_500 + 300, "{suspense}");
    canteen.sell("rest", CARD, 98_500)?;
    // The shop is found again: it says what it has, and holds nothing.
    stand.nodes[1].start()?;
    wait_for("the shop", || Ok(stand.nodes[1].status()?["refused"] == "incarnation"))
        .with_context(|| stand.nodes[1].log())?;
    stand.settle()?;
    ensure!(stand.balances()?[CARD] == 0, "{:?}", stand.balances()?);
    ensure!(
        stand.balances()?[OTHER] == 100_000,
        "what was given back is not given again: {:?}",
        stand.balances()?
    );
    let suspense = stand.export("postings")?;
    let suspense: i64 = suspense
        .iter()
        .filter(|line| line["ledger"] == "suspense")
        .map(|line| number(line, "amount_fen"))
        .sum();
    ensure!(suspense == 0, "{suspense}");
    ensure!(stand.till(1)?.tap("late", CARD, 1)?.outcome() == "declined");
    stand.finish()
}

/// Moved to another machine, whole: nothing is to be taken back, where the operator says so.
#[test]
fn a_data_directory_that_was_moved_whole_goes_on_at_once() -> Result<()> {
    let help = run_ok(CENTRE, ["run", "--help"]);
    ensure!(help.contains("--restored") && help.contains("--moved"), "{help}");
    let mut stand = two_buildings()?;
    back_up(&mut stand)?;
    stand.settle()?;
    stand.centre.stop()?;
    std::fs::rename(&stand.centre.data, stand.path("before"))?;
    copy(&stand.path("before"), &stand.centre.data)?;
    let mut command = stand.centre.command();
    command.arg("--moved");
    stand.centre.start_as(command)?;
    ensure!(
        stand.centre.status()?["recovery"].is_null() && stand.centre.status()?["recovered_until"].is_null()
    );
    links_up(&mut stand)?;
    stand.till(0)?.sell("on", CARD, 500)?;
    stand.finish()
}

//! The lifecycle against a model: whatever is asked in whatever order, the engine's answer, the
//! driver's instances and disks and, after a restart, the rows are what the model says.

use pinfold_types::api::StopRequest;
use pinfold_types::{ErrorCode, SandboxState};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    Start,
    Stop,
    Pause,
    Resume,
    Exec,
    Remove,
    Die,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize)>> {
    let step = prop_oneof![
        3 => Just(Step::Create),
        2 => Just(Step::Start),
        2 => Just(Step::Stop),
        2 => Just(Step::Pause),
        2 => Just(Step::Resume),
        2 => Just(Step::Exec),
        1 => Just(Step::Remove),
        1 => Just(Step::Die),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec((step, 0usize..3), 1..24)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Returns the state after a step, or the code that refuses it.
fn expected(state: Option<SandboxState>, step: Step) -> Result<Option<SandboxState>, ErrorCode> {
    use SandboxState::{Failed, Paused, Running, Stopped};
    match (step, state) {
        (Step::Create, Some(_)) => Err(ErrorCode::AlreadyExists),
        (Step::Die | Step::Restart, state) => Ok(state),
        (Step::Create, None)
        | (Step::Start, Some(Stopped | Failed))
        | (Step::Resume, Some(Paused))
        | (Step::Exec, Some(Running | Paused)) => Ok(Some(Running)),
        (_, None) => Err(ErrorCode::NotFound),
        (Step::Remove, Some(_)) => Ok(None),
        (Step::Stop, Some(Running | Paused | Failed)) => Ok(Some(Stopped)),
        (Step::Pause, Some(Running)) => Ok(Some(Paused)),
        (Step::Exec, Some(Failed)) => Err(ErrorCode::InstanceGone),
        _ => Err(ErrorCode::IllegalState),
    }
}

async fn take(engine: &Engine, name: &str, step: Step) -> Result<(), EngineError> {
    match step {
        Step::Create => engine.create(&USER, named(name), None).await.map(drop),
        Step::Start => engine.start(&USER, name).await.map(drop),
        Step::Stop => engine
            .stop(&USER, name, StopRequest::default())
            .await
            .map(drop),
        Step::Pause => engine.pause(&USER, name).await.map(drop),
        Step::Resume => engine.resume(&USER, name).await.map(drop),
        Step::Exec => engine
            .exec_start(&USER, name, command(&["true"]))
            .await
            .map(drop),
        Step::Remove => engine.remove(&USER, name, false).await.map(drop),
        Step::Die | Step::Restart => Ok(()),
    }
}

async fn shown(engine: &Engine, name: &str) -> Option<SandboxState> {
    engine
        .get(&USER, name)
        .await
        .ok()
        .map(|sandbox| sandbox.state)
}

async fn check(steps: Vec<(Step, usize)>) {
    let (dir, world) = (tempfile::tempdir().unwrap(), Arc::<World>::default());
    let mut engine = open(dir.path(), &world).await;
    let mut model: [Option<SandboxState>; 3] = [None; 3];
    for (step, index) in steps {
        let name = NAMES[index];
        if let Step::Restart = step {
            engine.shut_down().await;
            engine = open(dir.path(), &world).await;
        }
        if let (Step::Die, Some(SandboxState::Running | SandboxState::Paused)) =
            (step, model[index])
        {
            let id = engine.get(&USER, name).await.unwrap().id;
            world.instance(&id).unwrap().die();
            while shown(&engine, name).await != Some(SandboxState::Failed) {
                tokio::task::yield_now().await;
            }
            model[index] = Some(SandboxState::Failed);
        }
        match (
            take(&engine, name, step).await,
            expected(model[index], step),
        ) {
            (Ok(()), Ok(state)) => model[index] = state,
            (Err(error), Err(code)) => assert_eq!(error.code, code, "{step:?} {error}"),
            (done, wanted) => panic!("{step:?} gave {done:?}, and {wanted:?} was expected"),
        }
        for (name, state) in NAMES.iter().zip(model) {
            assert_eq!(shown(&engine, name).await, state, "after {step:?}");
        }
        let active = |state: &&Option<SandboxState>| {
            matches!(state, Some(SandboxState::Running | SandboxState::Paused))
        };
        let live = model.iter().filter(active).count();
        assert_eq!(world.live.lock().unwrap().len(), live, "after {step:?}");
        let disks = model.iter().flatten().count();
        assert_eq!(world.disks.lock().unwrap().len(), disks, "after {step:?}");
    }
    engine.shut_down().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_lifecycle_is_what_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(check(steps));
    }
}
